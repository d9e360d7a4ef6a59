"""Distillation by Pearson correlation."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.registry import MODELS

from .feature_base import FeatureLoss


@MODELS.register_module()
class PKDLoss(FeatureLoss):
    r"""Correlate the channels of student and teacher: *PKD: General Distillation Framework for
    Object Detectors via Pearson Correlation Coefficient* (NeurIPS 2022).

    Every channel of both maps is standardised: its mean over batch and positions is subtracted,
    then it is divided by its standard deviation over batch and positions. Half the mean squared
    difference of the standardised maps is one minus their correlation:

    .. math:: L = \frac{1}{C} \sum_c \frac{1}{2m} \sum_i (\hat s_{c,i} - \hat t_{c,i})^2
        = \frac{1}{C} \sum_c \big(1 - r(A(s)_c, t_c)\big), \qquad m = N H W

    :math:`A` is a 1x1 convolution where the channel counts differ. The standard deviation has the
    divisor :math:`m`; mmrazor's code divides by :math:`m - 1` instead, which makes the loss smaller
    by the factor :math:`(m - 1) / m`.

    **Couples the samples of a batch**: the statistics are taken over all of them, so a split batch
    gives another result. No hyper-parameters. mmrazor's configs weigh it 10 per pyramid
    level for one-stage and 6 for two-stage detectors.

    Shape:
        - student: (N, C_s, H, W)
        - teacher: (N, C_t, H, W)
        - output: (), between 0 and 2

    Example:
        >>> import torch
        >>> x = torch.randn(2, 8, 4, 4)
        >>> PKDLoss()(x, 3 * x + 1).abs().item() < 1e-5  # scale and shift do not count
        True
    """

    batch_coupled = True

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.pearson_distance(student, teacher)
