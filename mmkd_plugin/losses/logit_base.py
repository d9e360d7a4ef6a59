"""What losses on class logits have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmkd_plugin.functional.checks import check_choice

from .row_base import RowLoss

ACTIVATIONS = ('softmax', 'sigmoid')


class LogitLoss(RowLoss):
    """A loss on class logits: rows (N, C), or maps (N, C, H, W) whose positions are the rows.

    A subclass implements :meth:`rows`, or :meth:`compute` if its rows have no values of their own.
    Both always get rows: student and teacher (N, C), labels (N,), features (N, D), and so on.

    Attributes:
        one_column_refusal: why it refuses rows of one column; None if it takes them;
            formerly ``alone``.
        activation: ``'softmax'`` or ``'sigmoid'``, what turns the logits into probabilities.
        background: whether the last column is the background's.
    """

    rows_are = 'logits'
    one_column_refusal: str | None = None
    activation: str = 'softmax'
    background: bool = False

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
                raise self._missing(name, 'cls_logits')
            extras[name] = _as_rows(value, name, student.shape)
        shape = student.shape
        student, teacher = _as_rows(student, 'student', shape), _as_rows(teacher, 'teacher', shape)
        weights = None if weights is None else _as_rows(weights, 'weights', shape)
        return self._of_rows(student, teacher, weights, extras)


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
