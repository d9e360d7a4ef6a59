"""Contrast between the logit vectors of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from .checks import check_choice, check_pair, check_temperature, weighted_mean, widen
from .compiling import is_compiling

VARIANTS = ('ts', 'sym', 'ss')
REDUCTIONS = ('mean', 'none')
EPS = 1e-12  # of the norm; too small for half precision, which is widened first
BLOCK = 2**24  # products at a time: 4,096 rows with each other, 64 MiB
SMALL = 2**20  # products of all rows that are made at once whatever the groups: fewer kernels


def contrastive(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    variant: str = 'ts',
    weights: Tensor | None = None,
    groups: Tensor | int | None = None,
    reduction: str = 'mean',
) -> Tensor:
    r"""InfoNCE between the logit vectors of teacher and student (CKD, Zhu et al. 2024).

    .. math:: M_{ij} = \cos(t_i, s_j), \qquad
        L = -\frac{1}{B} \sum_i \log \frac{e^{M_{ii} / \tau}}{\sum_j e^{M_{ij} / \tau}}

    The student's row of a sample is drawn to the teacher's row of that sample and kept away from
    the teacher's other rows. The perfect student does not reach 0.

    Of more than 4,096 rows the matrix is made in blocks, and once more in the backward pass. Of
    groups only their own matrices are made, where their sizes are known without asking a device:
    on the CPU, or if ``groups`` is a number.

    Args:
        student: Logits of the student, one row per sample.
        teacher: Logits of the teacher; gets no gradient.
        temperature: :math:`\tau`, above 0.
        variant: ``'ts'`` as above, as the released code has it. ``'sym'`` adds the same with
            :math:`M` transposed (a sum, not a mean). ``'ss'`` takes :math:`\cos(s_i, s_j)` off the
            diagonal.
        weights: How much each row counts as an anchor, at least 0; None is 1. Rows of weight 0 are
            left out: they are no negatives of others either.
        groups: Group of each row, such as its image; rows are compared within their group only. Or
            how many rows each group has, one group behind the other.
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
        if isinstance(x, Tensor) and tuple(x.shape) != (student.shape[0],):
            raise ValueError(
                f'{name} must have shape (B,) = ({student.shape[0]},), got {tuple(x.shape)}.'
            )
    if isinstance(groups, int) and (groups < 1 or student.shape[0] % groups):
        raise ValueError(f'groups={groups} must divide the number of rows, {student.shape[0]}.')
    if isinstance(groups, int) and student.shape[0] ** 2 <= SMALL:
        rows = torch.arange(student.shape[0], device=student.device)
        groups = torch.div(rows, groups, rounding_mode='floor')
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
    groups: Tensor | int | None,
) -> Tensor:
    """How hard each anchor's own row is to tell from the others of its group, (B,).

    Args:
        anchors, others: vectors (B, C) whose products are compared.
        own: (B,) in the place of the product of each anchor with its own row.
        weights, groups: as of :func:`contrastive`.
    """
    count = len(anchors)
    if isinstance(groups, int):
        return _contrast_parts(anchors, others, own, weights, [groups] * (count // groups))
    if groups is None or count**2 <= SMALL or groups.device.type != 'cpu' or is_compiling():
        return _contrast_rows(anchors, others, own, weights, groups)
    order, sizes = groups.argsort(stable=True), groups.unique(return_counts=True)[1].tolist()
    own, weights = (None if x is None else x[order] for x in (own, weights))
    losses = _contrast_parts(anchors[order], others[order], own, weights, sizes)
    return torch.zeros_like(losses).index_copy(0, order, losses)


def _contrast_parts(
    anchors: Tensor,
    others: Tensor,
    own: Tensor | None,
    weights: Tensor | None,
    sizes: list[int],
) -> Tensor:
    """:func:`_contrast` of groups of these sizes, one behind the other."""
    owns, weighed = ([None] * len(sizes) if x is None else x.split(sizes) for x in (own, weights))
    parts = zip(anchors.split(sizes), others.split(sizes), owns, weighed)
    return torch.cat([_contrast_rows(a, b, o, w, None) for a, b, o, w in parts])


def _contrast_rows(
    anchors: Tensor,
    others: Tensor,
    own: Tensor | None,
    weights: Tensor | None,
    groups: Tensor | None,
) -> Tensor:
    """:func:`_contrast` in blocks of anchors, each with all others."""
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
