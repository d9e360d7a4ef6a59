"""What losses on class logits have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd_plugin.functional.checks import check_choice, weighted_mean, widen

from .base import DistillLoss
from .old_names import OldNames

ACTIVATIONS = ('softmax', 'sigmoid')
KINDS = ('dense', 'roi', 'query', 'pixel', 'image', 'keypoint')  # of heads


def select_by_kind(**others: str | dict) -> dict[str, str | dict]:
    """A selection for every kind of head: those given, and ``'all'`` for the others."""
    return {kind: others.get(kind, 'all') for kind in KINDS}


class LogitLoss(OldNames, DistillLoss):
    """A loss on class logits: rows (N, C), or maps (N, C, H, W) whose positions are the rows.

    A subclass implements :meth:`rows`, or :meth:`compute` if its rows have no values of their own.
    Both always get rows: student and teacher (N, C), labels (N,), features (N, D), and so on.

    Attributes:
        needs: beside ``'labels'`` and ``'features'`` also ``'images'`` (which image of the batch a
            row is from) and ``'priors'`` (which of the predictions at its position it is).
        separable: the value of a row depends on this row alone and on no parameter, so that the
            rows may be computed one part after the other.
        closed_form: a separable loss without extras that knows its gradient, by
            :meth:`values_along` and :meth:`slope_along`; saves whole maps a detour through rows.
        one_column_refusal: why it refuses rows of one column; None if it takes them;
            formerly ``alone``.
        compares_rows: rows are compared with each other, so copies of a row tell nothing;
            formerly ``contrasts``.
        default_select: which rows a term gives to the loss if it does not say, by the kind of the
            head; see :mod:`mmkd_plugin.terms.selection`.
        activation: ``'softmax'`` or ``'sigmoid'``, what turns the logits into probabilities.
        background: whether the last column is the background's.
    """

    separable: bool = False
    closed_form: bool = False
    one_column_refusal: str | None = None
    compares_rows: bool = False
    default_select: dict[str, str | dict] = select_by_kind()
    activation: str = 'softmax'
    background: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._noted: dict[str, tuple[Tensor, Tensor | None]] = {}

    def set_activation(self, activation: str, background: bool = False) -> None:
        """Takes over :attr:`activation` and :attr:`background` of the head; a term tells it once.

        Raises:
            ValueError: if the loss cannot compare such logits.
        """
        check_choice('activation', activation, ACTIVATIONS)
        self.activation = activation
        self.background = background

    def connect(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        features_shape: Sequence[int] | None = None,
        priors: int = 1,
    ) -> None:
        """Refuses shapes that :meth:`forward` could not compare.

        Args:
            student_shape: Shape (N, C, ...) of the student's logits.
            teacher_shape: Shape (N, C, ...) of the teacher's logits.
            features_shape: Shape (N, D, ...) of the features, for losses that need them.
            priors: Predictions at a position, such as anchors, which share their features.

        Raises:
            ValueError: if a shape is neither (N, C) nor (N, C, H, W), or the classes differ.
        """
        name = type(self).__name__
        for owner, shape in (('student', student_shape), ('teacher', teacher_shape)):
            if len(shape) not in (2, 4):
                raise ValueError(
                    f'{name} compares logits (N, C) or (N, C, H, W), '
                    f'but the {owner} tensor has shape {tuple(shape)}.'
                )
        if student_shape[1] != teacher_shape[1] or len(student_shape) != len(teacher_shape):
            raise ValueError(
                f'{name} needs the same classes (dimension 1) in student and teacher, got student '
                f'{tuple(student_shape)} and teacher {tuple(teacher_shape)}.'
            )
        if self.one_column_refusal and student_shape[1] < 2:
            raise ValueError(
                f'{name} {self.one_column_refusal}: these rows have one column (masks, or a '
                'single class). Use KDLoss there.'
            )

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        features: Tensor | None = None,
        weights: Tensor | None = None,
        images: Tensor | None = None,
        priors: Tensor | None = None,
    ) -> Tensor:
        """Returns the scalar loss: the mean over the rows, weighted where weights are given.

        Args:
            student: Logits, (N, C) or (N, C, H, W).
            teacher: Logits of the same shape.
            labels: Class indices, (N,) or (N, H, W); for losses that need them. For sigmoid logits
                C is the background.
            features: What the student's classification layer reads, (N, D) or (N, D, H, W); for
                losses that need it.
            weights: How much each row counts, at least 0, (N,) or (N, H, W). Rows of weight 0 have
                no influence whatever they hold, NaN included; with no other row the loss is 0.
            images: Indices of the rows' images, (N,) or (N, H, W); for losses that need them.
            priors: Indices of the rows among the predictions at their positions, (N,) or
                (N, H, W); for losses that need them.

        Raises:
            ValueError: if the shapes differ or do not belong together, or something is missing.
        """
        LogitLoss.connect(self, student.shape, teacher.shape)
        if student.shape != teacher.shape:
            raise ValueError(
                f'{type(self).__name__} needs logits of the same shape, got student '
                f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}.'
            )
        given = dict(labels=labels, features=features, images=images, priors=priors)
        extras = {}
        for name in self.needs:
            value = given[name]
            if value is None:
                raise ValueError(
                    f'{type(self).__name__} needs {name}; call it as loss(student, teacher, '
                    f"{name}=...), or tap the view 'cls_logits' in a term, which supplies them."
                )
            extras[name] = _as_rows(value, name, student.shape)
        shape = student.shape
        student, teacher = _as_rows(student, 'student', shape), _as_rows(teacher, 'teacher', shape)
        if weights is not None:
            weights = widen(_as_rows(weights, 'weights', shape).detach())
            # In front of the loss: behind it, a NaN would come back through the gradient, times 0.
            counted = weights != 0  # which NaN is, too: it shall be noticed
            weights, student, teacher = (
                zero_uncounted(x, counted) for x in (weights, student, teacher)
            )
            extras = {name: zero_uncounted(x, counted) for name, x in extras.items()}
            extras['weights'] = weights
        return super().forward(student, teacher, **extras)

    def compute(
        self, student: Tensor, teacher: Tensor, weights: Tensor | None = None, **extras: Tensor
    ) -> Tensor:
        value = weighted_mean(self.rows(student, teacher, **extras), weights)
        for key, (total, amount) in self.take_notes(weights).items():
            self.report[key] = total / torch.where(amount > 0, amount, 1)
        return value

    def rows(self, student: Tensor, teacher: Tensor, **extras: Tensor) -> Tensor:
        """One value per row (N,); ``extras`` are what :attr:`needs` names.

        Diagnostics go through :meth:`note`, which weighs the rows as the loss does.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement rows(student, teacher).')

    def values_along(self, student: Tensor, teacher: Tensor, dim: int) -> Tensor:
        """:meth:`rows` of tensors of any shape with the columns in ``dim``, which stays as 1."""
        raise NotImplementedError

    def slope_along(self, student: Tensor, teacher: Tensor, dim: int, out: Tensor) -> None:
        """Writes the gradient of :meth:`values_along` with respect to the student into ``out``."""
        raise NotImplementedError

    def note(self, key: str, values: Tensor, among: Tensor | None = None) -> None:
        """Reports the mean of ``values`` (N,) over the rows, or those ``among`` (N,) bool."""
        self._noted[key] = values.detach(), among

    def take_notes(self, weights: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        """What was noted since the last call: weighted sums over the rows, and of the weights."""
        notes, self._noted = self._noted, {}
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for key, (values, among) in notes.items():
            share = torch.ones_like(values) if weights is None else weights.to(values.dtype)
            share = share if among is None else share * among
            sums[key] = (values * share).sum(), share.sum()
        return sums

    def __getstate__(self) -> dict:
        return dict(super().__getstate__(), _noted={})


def zero_uncounted(x: Tensor, counted: Tensor) -> Tensor:
    """``x`` (N, ...) with zeros in the rows that do not count, (N,) bool."""
    return torch.where(
        counted.view(-1, *[1] * (x.ndim - 1)), x, torch.zeros((), dtype=x.dtype, device=x.device)
    )


_OF_POSITION = ('labels', 'weights', 'images', 'priors')


def _as_rows(x: Tensor, name: str, shape: Sequence[int]) -> Tensor:
    """Positions of a map become rows: (N, C, H, W) to (N*H*W, C), labels (N, H, W) to (N*H*W,)."""
    layout = [shape[0], *shape[2:]]
    sizes = list(x.shape) if name in _OF_POSITION else [x.shape[0], *x.shape[2:]]
    if sizes != layout:
        expected = '(N,) or (N, H, W)' if name in _OF_POSITION else '(N, D) or (N, D, H, W)'
        raise ValueError(
            f'{name} must be {expected} for logits of shape {tuple(shape)}, got {tuple(x.shape)}.'
        )
    if len(shape) == 2:
        return x
    return x.flatten() if name in _OF_POSITION else x.permute(0, 2, 3, 1).flatten(0, 2)
