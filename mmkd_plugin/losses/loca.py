"""Distillation from a calibrated teacher."""

from __future__ import annotations

from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.checks import check_bool
from mmkd_plugin.functional.checks import check_choice, check_inside, check_temperature
from mmkd_plugin.functional.loca import calibrate, raise_target
from mmkd_plugin.registry import MODELS

from .logit_base import LogitLoss
from .row_base import select_by_kind

CALIBRATE_AT = ('tempered', 'raw')


@MODELS.register_module()
class LoCaLoss(LogitLoss):
    r"""Teacher corrected where it is wrong: *LoCa: Logit Calibration for Knowledge Distillation*
    (2024).

    .. math:: L = \frac{T^2}{N} \sum_n \mathrm{KL}\big(q_n \,\|\, \mathrm{softmax}(s_n / T)\big),
        \qquad q_c = s\,p_c \;\; (c \ne y), \quad q_y = 1 - s\,(1 - p_y), \quad
        s = \frac{\alpha}{1 - p_y + p_k}

    for samples whose most probable class :math:`k` is not the label :math:`y`, with
    :math:`p = \mathrm{softmax}(t_n / T)`; the others keep :math:`q = p`. The label then leads the
    best other class by :math:`1 - \alpha`, and the ratios between the others stay.

    On sigmoid logits, whose classes are no distribution, the lead is what is left of it:
    :math:`q_y = \min(1 - \epsilon, \max_{c \ne y} p_c + 1 - \alpha)` where another class is on top,
    all else stays, and the divergence is the sum of the classes' Bernoulli divergences. Background
    rows stay as they are.

    Does not couple the samples of a batch. Has no parameters. Needs labels. Reports
    ``mis_instruction``, the share of samples that the teacher mispredicts (on sigmoid logits, of
    those with a class). On detectors it learns from the positives unless the term says otherwise:
    what the teacher sees in the background is often an object that was assigned to another place.

    Args:
        temperature: :math:`T`. Default 4.0, that of the plain distillation it replaces on
            CIFAR-100 (derived; the paper's own value is unverified).
        alpha: :math:`\alpha`, above 0 and below 1. Default 0.9 (recommended), from the range 0.9 to
            1 that a secondary source calls useful and robust.
        calibrate_at: ``'tempered'`` calibrates the probabilities at :math:`T`, which the student
            sees (default, recommended: the order is unverified). ``'raw'`` calibrates at
            temperature 1 and softens the result, which shrinks the lead.
        only_mispredicted: Leave correctly predicted samples alone (default, as the method is
            defined). False serves an ablation; on sigmoid logits it raises the leads that are
            smaller and lowers none.

    Shape:
        - student, teacher: (N, C), or maps (N, C, H, W) whose every position is a sample.
        - labels: (N,) or (N, H, W)
        - output: ()

    Example:
        >>> import torch
        >>> loss = LoCaLoss()
        >>> student = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]])
        >>> teacher = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1.0]])
        >>> value = loss(student, teacher, labels=torch.tensor([0, 0]))
        >>> print(f'{value.item():.4f}, {loss.report["mis_instruction"].item()}')
        0.6302, 0.5
    """

    needs = ('labels',)
    report_keys = ('mis_instruction',)
    separable = True
    one_column_refusal = 'raises the true class above the others, of which there are none'
    default_select = select_by_kind(dense='positive', roi='positive', query='positive')

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 0.9,
        calibrate_at: str = 'tempered',
        only_mispredicted: bool = True,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_inside('alpha', alpha, 0, 1)
        check_choice('calibrate_at', calibrate_at, CALIBRATE_AT)
        check_bool(only_mispredicted, 'only_mispredicted')
        self.temperature = temperature
        self.alpha = alpha
        self.calibrate_at = calibrate_at
        self.only_mispredicted = only_mispredicted

    def rows(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        at = self.temperature if self.calibrate_at == 'tempered' else 1.0
        options = self.alpha, at, self.only_mispredicted
        if self.activation == 'sigmoid':
            teacher, wrong, positive = raise_target(teacher, labels, *options)
            self.note('mis_instruction', wrong.float(), positive)
            return F.binary_kl(student, teacher, self.temperature, 'none')
        teacher, wrong = calibrate(teacher, labels, *options)
        self.note('mis_instruction', wrong.float())
        return F.kl_divergence(student, teacher, self.temperature, 'none')
