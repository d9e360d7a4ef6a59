"""Contrast between the logit vectors of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .checks import check_choice, check_pair, check_temperature, weighted_mean, widen

VARIANTS = ('ts', 'sym', 'ss')
REDUCTIONS = ('mean', 'none')
EPS = 1e-12  # of the norm; too small for half precision, which is widened first


def contrastive(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    variant: str = 'ts',
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    reduction: str = 'mean',
) -> Tensor:
    r"""InfoNCE between the logit vectors of teacher and student (CKD, Zhu et al. 2024).

    .. math:: M_{ij} = \cos(t_i, s_j), \qquad
        L = -\frac{1}{B} \sum_i \log \frac{e^{M_{ii} / \tau}}{\sum_j e^{M_{ij} / \tau}}

    The student's row of a sample is drawn to the teacher's row of that sample and kept away from
    the teacher's other rows. The perfect student does not reach 0.

    Args:
        student: Logits of the student, one row per sample.
        teacher: Logits of the teacher; gets no gradient.
        temperature: :math:`\tau`, above 0.
        variant: ``'ts'`` as above, as the released code has it. ``'sym'`` adds the same with
            :math:`M` transposed (a sum, not a mean). ``'ss'`` takes :math:`\cos(s_i, s_j)` off the
            diagonal.
        weights: How much each row counts as an anchor, at least 0; None is 1. Rows of weight 0 are
            left out: they are no negatives of others either.
        groups: Group of each row, such as its image; rows are compared within their group only.
        reduction: ``'mean'`` over the (weighted) rows or ``'none'``.

    Returns:
        A scalar for ``'mean'``, 0 for a batch of one sample or none; one value per row for
        ``'none'``, without the weights, and meaningless where they are 0.

    Shape:
        - student, teacher: (B, C)
        - weights, groups: (B,)
        - output: () or (B,)

    Raises:
        ValueError: for unequal shapes, or an invalid temperature, variant or reduction.

    Example:
        >>> import torch
        >>> print(f'{contrastive(torch.eye(2), torch.eye(2)).item():.6f}')  # log(1 + 1/e)
        0.313262
    """
    check_pair(student, teacher, 2, '(B, C)')
    check_temperature(temperature)
    check_choice('variant', variant, VARIANTS)
    check_choice('reduction', reduction, REDUCTIONS)
    for name, x in (('weights', weights), ('groups', groups)):
        if x is not None and tuple(x.shape) != (student.shape[0],):
            raise ValueError(
                f'{name} must have shape (B,) = ({student.shape[0]},), got {tuple(x.shape)}.'
            )
    if not student.shape[0]:
        return widen(student).sum() * 0 if reduction == 'mean' else widen(student).sum(1)
    inner = 'mean' if weights is None else 'none'
    inner = 'none' if reduction == 'none' else inner
    with torch.autocast(student.device.type, enabled=False):  # it would narrow the product
        s = _unit(widen(student))
        t = _unit(widen(teacher.detach()), temperature)
        rows = torch.arange(s.shape[0], device=s.device)
        if variant == 'ss':
            similar = (s / temperature @ s.T).diagonal_scatter((s * t).sum(1))
        else:
            similar = t @ s.T
        excluded = _not_compared(rows, weights, groups)
        loss = cross_entropy(_excluding(similar, excluded), rows, reduction=inner)
        if variant == 'sym':
            loss = loss + cross_entropy(_excluding(similar.T, excluded), rows, reduction=inner)
    if weights is None or reduction == 'none':
        return loss
    return weighted_mean(loss, weights)


def _not_compared(rows: Tensor, weights: Tensor | None, groups: Tensor | None) -> Tensor | None:
    """Which pairs (anchor, other) are not compared, (B, B) bool; a row always is with itself."""
    excluded = None
    if groups is not None:
        excluded = groups[:, None] != groups
    if weights is not None:
        out = weights <= 0
        excluded = out.expand(len(rows), -1) if excluded is None else excluded | out
    return None if excluded is None else excluded & (rows[:, None] != rows)


def _excluding(similar: Tensor, excluded: Tensor | None) -> Tensor:
    return similar if excluded is None else similar.masked_fill(excluded, -math.inf)


def _unit(x: Tensor, temperature: float = 1.0) -> Tensor:
    """Rows of length 1 / temperature; times the inverse, whose backward is cheaper than that of
    a quotient."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * length.clamp(min=EPS).mul(temperature).reciprocal()
