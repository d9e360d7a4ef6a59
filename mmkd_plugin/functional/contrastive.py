"""Contrast between the logit vectors of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from .checks import check_choice, check_pair, check_temperature, weighted_mean, widen

VARIANTS = ('ts', 'sym', 'ss')
REDUCTIONS = ('mean', 'none')
EPS = 1e-12  # of the norm; too small for half precision, which is widened first
BLOCK = 2**24  # products at a time: 4,096 rows with each other, 64 MiB


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

    Of more than 4,096 rows the matrix is made in blocks, and once more in the backward pass.

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
    with torch.autocast(student.device.type, enabled=False):  # it would narrow the product
        s = _unit(widen(student))
        t = _unit(widen(teacher.detach()), temperature)
        if variant == 'ss':
            loss = _contrast(s / temperature, s, (s * t).sum(1), weights, groups)
        else:
            loss = _contrast(t, s, None, weights, groups)
        if variant == 'sym':
            loss = loss + _contrast(s, t, None, weights, groups)
    if reduction == 'none':
        return loss
    return loss.mean() if weights is None else weighted_mean(loss, weights)


def _contrast(
    anchors: Tensor,
    others: Tensor,
    own: Tensor | None,
    weights: Tensor | None,
    groups: Tensor | None,
) -> Tensor:
    """How hard each anchor's own row is to tell from the others, (B,).

    Args:
        anchors, others: vectors (B, C) whose products are compared.
        own: (B,) in the place of the product of each anchor with its own row.
        weights, groups: as of :func:`contrastive`.
    """
    count = len(anchors)
    if count * count <= BLOCK:
        return _contrast_block(anchors, others, own, weights, groups, 0)
    step = max(BLOCK // count, 1)
    losses = [  # the backward makes each block again: only one is in memory at a time
        checkpoint(
            _contrast_block,
            anchors[start : start + step],
            others,
            None if own is None else own[start : start + step],
            weights,
            groups,
            start,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, count, step)
    ]
    return torch.cat(losses)


def _contrast_block(
    anchors: Tensor,
    others: Tensor,
    own: Tensor | None,
    weights: Tensor | None,
    groups: Tensor | None,
    start: int,
) -> Tensor:
    """:func:`_contrast` of a few anchors, the first of which is row ``start``."""
    similar = anchors @ others.T
    if own is not None:
        similar = similar.diagonal_scatter(own, offset=start)
    rows = torch.arange(start, start + len(anchors), device=anchors.device)
    excluded = None  # which pairs are not compared; an anchor always is with its own row
    if groups is not None:
        excluded = groups[rows, None] != groups
    if weights is not None:
        out = weights <= 0
        excluded = out if excluded is None else excluded | out
    if excluded is not None:
        columns = torch.arange(len(others), device=rows.device)
        similar = similar.masked_fill(excluded & (rows[:, None] != columns), -math.inf)
    return cross_entropy(similar, rows, reduction='none')


def _unit(x: Tensor, temperature: float = 1.0) -> Tensor:
    """Rows of length 1 / temperature; times the inverse, whose backward is cheaper than that of
    a quotient."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * length.clamp(min=EPS).mul(temperature).reciprocal()
