"""Channel-wise distillation."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.functional.checks import check_temperature
from mmkd_plugin.registry import MODELS

from .feature_base import FeatureLoss


@MODELS.register_module()
class CWDLoss(FeatureLoss):
    r"""Spatial distribution of every channel: *Channel-wise Knowledge Distillation for Dense
    Prediction* (ICCV 2021).

    .. math:: L = \frac{T^2}{N C} \sum_{n,c} \mathrm{KL}\big(
        \mathrm{softmax}_k(t_{n,c,k} / T) \,\|\, \mathrm{softmax}_k(A(s)_{n,c,k} / T)\big)

    :math:`k` runs over the positions of one channel, :math:`A` is a 1x1 convolution where the
    channel counts differ.

    Does not couple the samples of a batch.

    Args:
        temperature: :math:`T`. Default 4.0, the paper's; mmrazor's detection configs take 1.0,
            with weight 10 on every level of the feature pyramid.

    Shape:
        - student: (N, C_s, H, W)
        - teacher: (N, C_t, H, W)
        - output: ()

    Example:
        >>> import torch
        >>> x = torch.randn(2, 8, 4, 4)
        >>> CWDLoss()(x, x + 1).abs().item() < 1e-5  # a constant per channel does not count
        True
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.channel_kl(student, teacher, self.temperature)
