"""Knowledge distillation on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.functional.checks import check_temperature
from mmkd_plugin.registry import MODELS

from .base import LogitLoss


@MODELS.register_module()
class KDLoss(LogitLoss):
    r"""Softened class distributions: *Distilling the Knowledge in a Neural Network* (2015).

    .. math:: L = \frac{T^2}{N} \sum_n \mathrm{KL}\big(\mathrm{softmax}(t_n / T) \,\|\,
        \mathrm{softmax}(s_n / T)\big)

    With ``use_sigmoid`` every class is a Bernoulli variable of its own and the KL divergences of
    the classes are summed, as suits the heads of one-stage detectors.

    Does not couple the samples of a batch. Has no parameters.

    Args:
        temperature: :math:`T`. Default 4.0, the value of the CIFAR-100 benchmarks (with weight 0.9
            beside 0.1 of the task loss); ImageNet recipes use 1.0.
        use_sigmoid: Treat the logits as sigmoid instead of softmax logits.

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

    def __init__(self, temperature: float = 4.0, use_sigmoid: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.use_sigmoid = use_sigmoid

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        divergence = F.binary_kl if self.use_sigmoid else F.kl_divergence
        return divergence(student, teacher, self.temperature)

    def extra_repr(self) -> str:
        return f'temperature={self.temperature}, use_sigmoid={self.use_sigmoid}'
