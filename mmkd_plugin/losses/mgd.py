"""Masked generative distillation."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.functional.checks import check_choice, check_number
from mmkd_plugin.functional.features import MASKS, NORMALIZE
from mmkd_plugin.registry import MODELS

from .feature_base import GenerativeLoss


@MODELS.register_module()
class MGDLoss(GenerativeLoss):
    r"""Restore the teacher's map from a masked one: *Masked Generative Distillation* (ECCV 2022).

    .. math:: Y = G(M \odot A(s)), \qquad L = \frac{1}{N C H W} \sum (t - Y)^2

    :math:`A` is a 1x1 convolution where the channel counts differ, :math:`M` a random mask, drawn
    anew in every call, and :math:`G` conv3x3 - ReLU - conv3x3.

    Does not couple the samples of a batch.

    Args:
        mask_ratio: Probability of a position, or channel, to be masked. Default 0.65, the paper's
            value for one-stage detectors (0.45 for two-stage detectors, 0.75 for semantic
            segmentation, 0.15 for classifiers).
        normalize: ``'mean'`` (default) divides by N C H W, as the equation above. ``'batch'``
            divides by N only, which is the original reduction: use it with published weights (2e-5
            one-stage, 5e-7 two-stage). A weight for ``'batch'`` times C H W is the equivalent
            weight for ``'mean'``.
        mask: what is masked. ``'position'`` (default) hides positions in all channels, (N, 1, H,
            W), as the official code does for detection and segmentation; ``'channel'`` hides whole
            channels, (N, C, 1, 1), as it does for classifiers.
        width: Channels between both convolutions of :math:`G`. Default None, the teacher's, as
            in the paper. Less makes a cheaper generator on wide maps: at 2,048 channels it has 75
            million parameters, with ``width=256`` 9 million.

    Shape:
        - student: (N, C_s, H, W)
        - teacher: (N, C_t, H, W)
        - output: ()

    Example:
        >>> import torch
        >>> loss = MGDLoss(mask_ratio=0.45)
        >>> loss(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        mask_ratio: float = 0.65,
        normalize: str = 'mean',
        mask: str = 'position',
        width: int | None = None,
    ) -> None:
        super().__init__(width)
        check_number('mask_ratio', mask_ratio, 0, 1)
        check_choice('normalize', normalize, NORMALIZE)
        check_choice('mask', mask, MASKS)
        self.mask_ratio = mask_ratio
        self.normalize = normalize
        self.mask = mask

    def corrupt(self, x: Tensor) -> Tensor:
        masked = F.mask_channels if self.mask == 'channel' else F.mask_positions
        return masked(x, self.mask_ratio, self.random_generator(x.device))

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.feature_mse(student, teacher, self.normalize)
