"""Generative denoise distillation."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.functional.checks import check_choice, check_number, check_temperature
from mmkd_plugin.functional.features import NOISE_MODES
from mmkd_plugin.registry import MODELS

from .feature_base import GenerativeLoss


@MODELS.register_module()
class GDDLoss(GenerativeLoss):
    r"""Denoise the student's map into the teacher's: *Generative Denoise Distillation* (2024).

    .. math:: Y = G(A(s) + Z), \qquad
        L = \frac{T^2}{N C} \sum_{n,c} \mathrm{KL}\big(\mathrm{softmax}_k(t_{n,c,k} / T) \,\|\,
        \mathrm{softmax}_k(Y_{n,c,k} / T)\big)

    :math:`A` is a 1x1 convolution where the channel counts differ, :math:`Z` Gaussian noise drawn
    anew in every call, :math:`G` conv3x3 - ReLU - conv3x3, and :math:`k` runs over the positions of
    one channel. Without noise and with the identity for :math:`G` this is ``CWDLoss``.

    Does not couple the samples of a batch.

    Args:
        temperature: :math:`T`. Default 4.0, the value of all official configs.
        noise: ``'channel'`` draws an independent map per channel, as the paper's formula reads
            (default). ``'shared'`` draws one map for all channels, as the official code does: use
            it to compare with published numbers. ``'scalar'`` (one number per channel, to which the
            softmax over positions is nearly blind) and ``'none'`` serve ablations.
        noise_std: Standard deviation of the noise. Default 1.0, the paper's.
        width: Channels between both convolutions of :math:`G`. Default None, the teacher's, as
            in the paper. Less makes a cheaper generator on wide maps: at 2,048 channels it has 75
            million parameters, with ``width=256`` 9 million.

    Shape:
        - student: (N, C_s, H, W)
        - teacher: (N, C_t, H, W)
        - output: ()

    Note:
        The term weights of the official configs (4 for Faster R-CNN, 65 for RepPoints, 200 for
        SOLO, 145 and 175 for segmentation) apply unchanged.

    Example:
        >>> import torch
        >>> loss = GDDLoss()
        >>> value = loss(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8))
        >>> value.shape, loss.align.weight.shape
        (torch.Size([]), torch.Size([6, 4, 1, 1]))
    """

    def __init__(
        self,
        temperature: float = 4.0,
        noise: str = 'channel',
        noise_std: float = 1.0,
        width: int | None = None,
    ) -> None:
        super().__init__(width)
        check_temperature(temperature)
        check_choice('noise', noise, NOISE_MODES)
        check_number('noise_std', noise_std, 0)
        self.temperature = temperature
        self.noise = noise
        self.noise_std = noise_std

    def corrupt(self, x: Tensor) -> Tensor:
        return F.add_noise(x, self.noise, self.noise_std, self.random_generator(x.device))

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.channel_kl(student, teacher, self.temperature)
