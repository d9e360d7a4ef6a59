"""Knowledge distillation on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.checks import check_bool
from mmkd_plugin.functional.checks import check_temperature
from mmkd_plugin.functional.logits import divergence_along, divergence_slope
from mmkd_plugin.registry import MODELS

from .logit_base import LogitLoss
from .row_base import select_by_kind


@MODELS.register_module()
class KDLoss(LogitLoss):
    r"""Softened class distributions: *Distilling the Knowledge in a Neural Network* (2015).

    .. math:: L = \frac{T^2}{N} \sum_n \mathrm{KL}\big(\mathrm{softmax}(t_n / T) \,\|\,
        \mathrm{softmax}(s_n / T)\big)

    On sigmoid logits every class is a Bernoulli variable of its own and the KL divergences of the
    classes are summed, as suits the heads of one-stage detectors. On dense heads the teacher's
    scores weigh the positions (``select='score_weighted'``) unless the term says otherwise.

    Does not couple the samples of a batch. Has no parameters.

    Args:
        temperature: :math:`T`. Default 4.0, the value of the CIFAR-100 benchmarks (with weight 0.9
            beside 0.1 of the task loss); ImageNet recipes use 1.0.
        use_sigmoid: Treat the logits as sigmoid (True) or softmax logits (False). Default None: as
            the view says, and as softmax logits without one.

    Shape:
        - student, teacher: (N, C), or maps (N, C, H, W) whose channels are the classes and whose
          every position is a sample.
        - output: ()

    Example:
        >>> import torch
        >>> student = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]])
        >>> teacher = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1.0]])
        >>> print(f'{KDLoss(temperature=4.0)(student, teacher).item():.4f}')
        0.3386
    """

    separable = True
    closed_form = True
    default_select = select_by_kind(dense='score_weighted', query='score_weighted')

    def __init__(self, temperature: float = 4.0, use_sigmoid: bool | None = None) -> None:
        super().__init__()
        check_temperature(temperature)
        if use_sigmoid is not None:
            check_bool(use_sigmoid, 'use_sigmoid')
        self.temperature = temperature
        self.use_sigmoid = use_sigmoid

    @property
    def sigmoid(self) -> bool:
        """Whether every class is on its own."""
        return self.activation == 'sigmoid' if self.use_sigmoid is None else self.use_sigmoid

    def set_activation(self, activation: str, background: bool = False) -> None:
        super().set_activation(activation, background)
        if self.sigmoid != (activation == 'sigmoid'):
            raise ValueError(
                f'KDLoss: use_sigmoid={self.use_sigmoid} contradicts the head, whose logits are '
                f'{activation} logits; leave use_sigmoid out, then the loss follows the head.'
            )

    def rows(self, student: Tensor, teacher: Tensor) -> Tensor:
        divergence = F.binary_kl if self.sigmoid else F.kl_divergence
        return divergence(student, teacher, self.temperature, 'none')

    def values_along(self, student: Tensor, teacher: Tensor, dim: int) -> Tensor:
        return divergence_along(student, teacher, self.temperature, dim, self.sigmoid)

    def slope_along(self, student: Tensor, teacher: Tensor, dim: int, out: Tensor) -> None:
        divergence_slope(student, teacher, self.temperature, dim, self.sigmoid, out)
