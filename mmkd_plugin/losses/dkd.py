"""Decoupled knowledge distillation on logits."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.functional.checks import (
    check_inside,
    check_number,
    check_temperature,
)
from mmkd_plugin.functional.loca import calibrate as loca
from mmkd_plugin.registry import MODELS

from .logit_base import LogitLoss


@MODELS.register_module()
class DKDLoss(LogitLoss):
    r"""Target and other classes apart: *Decoupled Knowledge Distillation* (2022).

    .. math::
        L &= \frac{T^2}{N} \sum_n \big[\alpha \, \mathrm{TCKD}_n + \beta \, \mathrm{NCKD}_n\big] \\
        \mathrm{TCKD} &= \mathrm{KL}\big((p^T_y, 1 - p^T_y) \,\|\, (p^S_y, 1 - p^S_y)\big), \quad
        \mathrm{NCKD} = \mathrm{KL}(q^T \,\|\, q^S)

    with :math:`p = \mathrm{softmax}(z / T)`, and :math:`q` the distribution of the classes other
    than the label :math:`y`. Plain distillation is TCKD + :math:`(1 - p^T_y)` NCKD.

    Does not couple the samples of a batch. Has no parameters. Needs labels.

    Args:
        temperature: :math:`T`. Default 4.0, the CIFAR-100 value of the official code; its ImageNet
            recipes use 1.0.
        alpha: Weight of the target part. Default 1.0, the value of all official recipes.
        beta: Weight of the other classes. Default 8.0, official for the ResNet-32x4 teachers of
            CIFAR-100 and for two more pairs; it is 2 or 6 for the rest, 0.5 and 2 on ImageNet.
        calibrate: The ``alpha`` of ``LoCaLoss``, above 0 and below 1: mispredicted samples of the
            teacher are calibrated first, and their share is reported as ``mis_instruction``. Only
            the target part changes. Default None, no calibration; 0.9 is recommended.

    Shape:
        - student, teacher: (N, C), or maps (N, C, H, W) whose every position is a sample.
        - labels: (N,) or (N, H, W)
        - output: ()

    Note:
        The official recipes weigh the task loss with 1 and let the weight of this loss rise over
        the first 20 epochs (1 on ImageNet): ``warmup`` of the term.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]])
        >>> teacher = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1.0]])
        >>> print(f'{DKDLoss()(student, teacher, labels=torch.tensor([0, 0])).item():.4f}')
        1.3246
    """

    needs = ('labels',)
    report_keys = ('mis_instruction',)
    separable = True

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        calibrate: float | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_number('alpha', alpha, 0)
        check_number('beta', beta, 0)
        if calibrate is not None:
            check_inside('calibrate', calibrate, 0, 1)
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.calibrate = calibrate

    def set_activation(self, activation: str, background: bool = False) -> None:
        super().set_activation(activation, background)
        if activation == 'sigmoid':
            raise ValueError(
                'DKDLoss splits a softmax distribution into the target and the others, but the '
                "head's logits are sigmoid logits, whose classes share no distribution; use KDLoss "
                'or LoCaLoss there, or DKDLoss on a softmax head such as that of RoIs.'
            )

    def rows(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if self.calibrate is not None:
            teacher, wrong = loca(teacher, labels, self.calibrate, self.temperature, True)
            self.note('mis_instruction', wrong.float())
        return F.dkd(
            student, teacher, labels, self.temperature, self.alpha, self.beta, reduction='none'
        )
