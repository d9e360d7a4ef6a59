"""Distances between boxes, row by row: the student's box and the teacher's of the same object.

Boxes are corners x1, y1, x2, y2. Sides that are reversed have length 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_choice, check_number, check_pair, reduce, weighted_mean, widen

REDUCTIONS = ('mean', 'none')
_EPS = 1e-7  # of areas and of squared lengths, as in torchvision.ops


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of the boxes of each row: the intersection's area divided by the union's.

    Args:
        first: Corners.
        second: Corners.

    Returns:
        From 0 to 1, in float32 or wider; 0 where both have no area.

    Shape:
        - first, second: (N, 4)
        - output: (N,)

    Raises:
        ValueError: for unequal shapes, or no boxes.

    Example:
        >>> import torch
        >>> print(box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])).item())
        0.3333333432674408
    """
    _check(first, second)
    inner, union, _ = _areas(widen(first), widen(second))
    return inner / union.clamp(min=_EPS)


def giou_loss(
    student: Tensor, teacher: Tensor, weights: Tensor | None = None, reduction: str = 'mean'
) -> Tensor:
    r"""One minus the generalised IoU (Rezatofighi et al. 2019).

    .. math:: 1 - \frac{|S \cap T|}{|S \cup T|} + \frac{|H| - |S \cup T|}{|H|}

    with the hull :math:`H`, the smallest box around both. Where both agree it is 0, and so is its
    gradient.

    Args:
        student: Corners of the student's boxes.
        teacher: Corners of the teacher's; gets no gradient.
        weights: How much each row counts, at least 0, (N,); None for all alike.
        reduction: ``'mean'``, weighted, or ``'none'``.

    Returns:
        From 0 to 2; a scalar for ``'mean'``, one value per row, times its weight, for ``'none'``.

    Shape:
        - student, teacher: (N, 4)
        - output: () or (N,)

    Raises:
        ValueError: for unequal shapes or an unknown reduction.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]])
        >>> print(f'{giou_loss(student, teacher).item():.4f}')  # 1 - 0 + 1/3
        1.3333
    """
    _check(student, teacher)
    s, t = widen(student), widen(teacher.detach())
    inner, union, hull = _areas(s, t)
    # The same number in both parts of the first quotient: of equal boxes it is 1, however small.
    values = 1 - (inner + _EPS) / (union + _EPS) + (hull - union) / (hull + _EPS)
    return _reduced(values, weights, reduction)


def diou_loss(
    student: Tensor, teacher: Tensor, weights: Tensor | None = None, reduction: str = 'mean'
) -> Tensor:
    r"""One minus the distance IoU (Zheng et al. 2020).

    .. math:: 1 - \frac{|S \cap T|}{|S \cup T|} + \frac{d^2}{c^2}

    where :math:`d` is the distance of the two centres and :math:`c` the diagonal of the hull, the
    smallest box around both.

    Args:
        student: Corners of the student's boxes.
        teacher: Corners of the teacher's; gets no gradient.
        weights: How much each row counts, at least 0, (N,); None for all alike.
        reduction: ``'mean'``, weighted, or ``'none'``.

    Returns:
        From 0 to 2; a scalar for ``'mean'``, one value per row, times its weight, for ``'none'``.

    Shape:
        - student, teacher: (N, 4)
        - output: () or (N,)

    Raises:
        ValueError: for unequal shapes or an unknown reduction.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]])
        >>> print(f'{diou_loss(student, teacher).item():.4f}')  # 1 - 0 + 4/10
        1.4000
    """
    _check(student, teacher)
    s, t = widen(student), widen(teacher.detach())
    inner, union, _ = _areas(s, t)
    low, high = torch.minimum(s[:, :2], t[:, :2]), torch.maximum(s[:, 2:], t[:, 2:])
    diagonal = (high - low).square().sum(1)
    apart = (s - t).view(-1, 2, 2).mean(1).square().sum(1)  # of the centres
    values = 1 - (inner + _EPS) / (union + _EPS) + apart / (diagonal + _EPS)
    return _reduced(values, weights, reduction)


def box_l1(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None = None,
    beta: float = 0.0,
    normalize: bool = True,
    reduction: str = 'mean',
) -> Tensor:
    r"""L1 or smooth L1 distance of the four sides, the mean over them.

    .. math:: \frac14 \sum_k \ell_\beta\Big(\frac{s_k - t_k}{a_k}\Big), \qquad
        \ell_\beta(d) = \begin{cases} d^2 / 2 \beta & |d| < \beta \\
        |d| - \beta / 2 & \text{otherwise} \end{cases}

    where :math:`a_k` is the width of the teacher's box for the sides :math:`x_1, x_2` and its
    height for :math:`y_1, y_2`, so that a box of any size counts alike.

    Args:
        student: Corners of the student's boxes.
        teacher: Corners of the teacher's; gets no gradient.
        weights: How much each row counts, at least 0, (N,); None for all alike.
        beta: From which distance on it is linear; 0 is plain L1.
        normalize: Divide by the sides of the teacher's box; False compares in the boxes' own unit.
        reduction: ``'mean'``, weighted, or ``'none'``.

    Returns:
        A scalar for ``'mean'``, one value per row, times its weight, for ``'none'``.

    Shape:
        - student, teacher: (N, 4)
        - output: () or (N,)

    Raises:
        ValueError: for unequal shapes, a ``beta`` below 0 or an unknown reduction.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 2, 4]])
        >>> print(box_l1(student, teacher).item())  # one of four sides is off by a whole width
        0.25
    """
    _check(student, teacher)
    check_number('beta', beta, 0)
    s, t = widen(student), widen(teacher.detach())
    apart = s - t
    if normalize:
        sides = (t[:, 2:] - t[:, :2]).clamp(min=_EPS)
        apart = apart / torch.cat([sides, sides], 1)
    size = apart.abs()
    if beta > 0:
        size = torch.where(size < beta, apart.square() / (2 * beta), size - beta / 2)
    return _reduced(size.mean(1), weights, reduction)


def closer_to(truth: Tensor, teacher: Tensor, student: Tensor, margin: float = 0.0) -> Tensor:
    """Whether the teacher's box of a row overlaps the truth more than the student's, by ``margin``.

    Args:
        truth: Corners of the objects.
        teacher: Corners of the teacher's boxes.
        student: Corners of the student's boxes.
        margin: By how much the IoU must be larger. Of equal boxes none is closer. A NaN counts as
            closer, so that it is noticed.

    Shape:
        - truth, teacher, student: (N, 4)
        - output: (N,) bool

    Raises:
        ValueError: for unequal shapes.

    Example:
        >>> import torch
        >>> truth = torch.tensor([[0.0, 0, 4, 4]])
        >>> closer_to(truth, truth, torch.tensor([[0.0, 0, 4, 5]])).item()
        True
    """
    theirs, own = box_iou(teacher.detach(), truth), box_iou(student.detach(), truth)
    return ~(theirs <= own + margin)


def _check(first: Tensor, second: Tensor) -> None:
    check_pair(first, second, 2, '(N, 4)')
    if first.shape[1] != 4:
        raise ValueError(f'boxes must have shape (N, 4), got {tuple(first.shape)}.')


def _areas(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas (N,) of the intersection, of the union and of the hull."""
    inner = _area(torch.maximum(s[:, :2], t[:, :2]), torch.minimum(s[:, 2:], t[:, 2:]))
    hull = _area(torch.minimum(s[:, :2], t[:, :2]), torch.maximum(s[:, 2:], t[:, 2:]))
    union = _area(s[:, :2], s[:, 2:]) + _area(t[:, :2], t[:, 2:]) - inner
    return inner, union, hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    sides = (high - low).clamp(min=0)
    return sides[:, 0] * sides[:, 1]


def _reduced(values: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    check_choice('reduction', reduction, REDUCTIONS)
    if weights is None:
        return reduce(values, reduction)
    weights = widen(weights.detach())
    return values * weights if reduction == 'none' else weighted_mean(values, weights)
