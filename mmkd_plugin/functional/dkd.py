"""Decoupled knowledge distillation: the target class and the others, weighted separately."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from .checks import (
    check_choice,
    check_labels,
    check_number,
    check_pair,
    check_temperature,
    reduce,
    widen,
)

REDUCTIONS = ('mean', 'none')


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    reduction: str = 'mean',
) -> Tensor:
    r"""Decoupled KL divergence (Zhao et al. 2022).

    .. math:: \alpha \, \mathrm{TCKD} + \beta \, \mathrm{NCKD}

    with the two parts of :func:`dkd_parts`, :math:`T^2` included. The plain KL divergence is the
    same sum with the weights 1 and :math:`1 - p^T_y` (teacher), which nearly silence NCKD where the
    teacher is sure.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher; gets no gradient.
        labels: Class indices :math:`y`.
        temperature: :math:`T`, above 0.
        alpha: Weight of TCKD, at least 0.
        beta: Weight of NCKD, at least 0.
        reduction: ``'mean'`` over the samples or ``'none'``.

    Returns:
        A scalar for ``'mean'``, one value per sample for ``'none'``.

    Shape:
        - student, teacher: (N, C)
        - labels: (N,)
        - output: () or (N,)

    Raises:
        ValueError: for tensors that do not fit together, or an invalid number or reduction.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]])
        >>> teacher = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1.0]])
        >>> print(f'{dkd(student, teacher, torch.tensor([0, 0])).item():.4f}')
        1.3246
    """
    check_number('alpha', alpha, 0)
    check_number('beta', beta, 0)
    check_choice('reduction', reduction, REDUCTIONS)
    target, others = dkd_parts(student, teacher, labels, temperature, 'none')
    return reduce(alpha * target + beta * others, reduction)


def dkd_parts(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    reduction: str = 'mean',
) -> tuple[Tensor, Tensor]:
    r"""The two parts of :func:`dkd`: TCKD (target or not) and NCKD (which of the others).

    .. math::
        \mathrm{TCKD} &= T^2 \, \mathrm{KL}\big((p^T_y, 1 - p^T_y) \,\|\, (p^S_y, 1 - p^S_y)\big) \\
        \mathrm{NCKD} &= T^2 \sum_{c \ne y} q^T_c (\log q^T_c - \log q^S_c), \qquad
        q_c = p_c / (1 - p_y), \quad p = \mathrm{softmax}(z / T)

    With a single class both are 0, with two classes NCKD is.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher; gets no gradient.
        labels: Class indices :math:`y`.
        temperature: :math:`T`, above 0.
        reduction: ``'mean'`` over the samples or ``'none'``.

    Returns:
        TCKD and NCKD, each a scalar for ``'mean'``, one value per sample for ``'none'``.

    Shape:
        - student, teacher: (N, C)
        - labels: (N,)
        - outputs: () or (N,)

    Raises:
        ValueError: for tensors that do not fit together, or an invalid temperature or reduction.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 3.0]]).log()
        >>> parts = dkd_parts(student, teacher, torch.tensor([0]), temperature=1.0)
        >>> print(', '.join(f'{part.item():.4f}' for part in parts))  # 1/3 is right, 1/4 is not
        0.0000, 0.1308
    """
    check_pair(student, teacher, 2, '(N, C)')
    check_labels(labels, *student.shape)
    check_temperature(temperature)
    check_choice('reduction', reduction, REDUCTIONS)
    s, t = widen(student), widen(teacher.detach())
    if s.shape[1] < 2:
        zero = reduce((s * 0).sum(-1), reduction)
        return zero, zero
    index = labels.long().unsqueeze(1)
    s_odds, s_others = _split(s / temperature, index)
    t_odds, t_others = _split(t / temperature, index)
    # Bernoulli of the target: logsigmoid(-x) is log(1 - p) without the subtraction.
    hit = t_odds.sigmoid() * (logsigmoid(t_odds) - logsigmoid(s_odds))
    miss = (-t_odds).sigmoid() * (logsigmoid(-t_odds) - logsigmoid(-s_odds))
    # The column of the target is finite in both and gets the weight 0.
    weights = t_others.exp().scatter_(1, index, 0.0)
    others = (weights * t_others.sub_(s_others)).sum(-1)
    scale = temperature**2
    return reduce((hit + miss) * scale, reduction), reduce(others * scale, reduction)


def _split(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds of the target (N,), and log probabilities of the others (N, C).

    The others' are conditional on "not the target"; the target's column means nothing.
    """
    log_rest = z.scatter(1, index, -math.inf).logsumexp(1, keepdim=True)
    return (z.gather(1, index) - log_rest).squeeze(1), z - log_rest
