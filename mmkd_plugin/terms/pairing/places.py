"""Before training: the two places of a term and its loss."""

from __future__ import annotations

from torch import nn

from ...errors import TapError
from ...losses.base import DistillLoss
from ...losses.boxes import BoxLoss
from ...losses.row_base import RowLoss
from ...views import LogitView, TapView
from ...views.activation import activation_of, class_loss
from ..config import TermConfig

# What compares rows of a kind, and which view gives them.
_LOSSES = dict(logits='a loss on logits, such as KDLoss', boxes='BoxDistillLoss')
_VIEWS = dict(logits='cls_logits', boxes='boxes')


def check_views(
    config: TermConfig,
    views: tuple[TapView | LogitView, TapView | LogitView],
    models: tuple[nn.Module, nn.Module],
    copies: int,
) -> None:
    """Refuses two places of different kinds, and a loss or a repetition that does not go with them.

    Raises:
        TapError: saying what to write instead.
    """
    loss, (student, teacher) = config.built, views
    if isinstance(student, TapView) and isinstance(teacher, TapView):
        if isinstance(loss, BoxLoss):
            raise TapError(
                f'{type(loss).__name__} compares decoded boxes, but student={config.student!r} '
                "gives the tensors of a module. Take the view student='boxes'."
            )
        return
    if isinstance(student, TapView) or isinstance(teacher, TapView):
        raise TapError(
            f'student={config.student!r} and teacher={config.teacher!r} are a view and a module '
            'path: rows of logits with a meaning, and a plain tensor. Give both of one kind.'
        )
    if student.teacher_only:
        raise TapError(
            f'student={config.student!r} reads a teacher for the rows of a student. Name the '
            f"student's own rows: student='cls_logits', teacher={config.student!r}."
        )
    if not isinstance(loss, RowLoss):
        raise TapError(
            f'{type(loss).__name__} compares feature maps, but student={config.student!r} gives '
            f"rows of {student.rows_are}. Tap a module path, such as 'neck', or take "
            f'{_LOSSES[student.rows_are]}.'
        )
    if loss.rows_are != student.rows_are:
        raise TapError(
            f'{type(loss).__name__} compares {loss.rows_are}, but student={config.student!r} gives '
            f'rows of {student.rows_are}. Take student={_VIEWS[loss.rows_are]!r}, or '
            f'{_LOSSES[student.rows_are]}.'
        )
    if teacher.rows_are != student.rows_are and not teacher.teacher_only:
        raise TapError(
            f'student={config.student!r} gives rows of {student.rows_are} and '
            f'teacher={config.teacher!r} rows of {teacher.rows_are}. Name the same view on both '
            f'sides: teacher={config.student!r}.'
        )
    if copies > 1 and not student.repeats:
        raise TapError(
            f'{type(models[0]).__name__} sees each image in {copies} branches, for which '
            f'the view {config.student!r} ({type(student).__name__}) has no rows of a teacher. '
            'Distil features, such as the backbone.'
        )
    teacher.check_loss(loss)


def refuse_sigmoid_head(loss: DistillLoss, tap: TapView, model: nn.Module) -> None:
    """Refuses a softmax over the columns of a head that has a sigmoid for each class.

    Raises:
        TapError: unless the loss was told ``use_sigmoid``.
    """
    if getattr(loss, 'use_sigmoid', True) is not None:
        return
    for point in tap.points:
        names = point.path.split('.')
        for depth in range(len(names) + 1):  # a model may have no head, and a loss of its own
            owner = model.get_submodule('.'.join(names[:depth]))
            if _has_sigmoids(owner):
                raise TapError(
                    f'{point.path!r} belongs to {type(owner).__name__}, whose loss has a '
                    f'sigmoid for each class, and {type(loss).__name__} would take a softmax over '
                    "the classes. Take the view student='cls_logits', which follows the head, or "
                    'say use_sigmoid=True in the loss.'
                )


def _has_sigmoids(owner: nn.Module) -> bool:
    found = class_loss(owner)
    if found is None:
        return False
    classes = getattr(owner, 'num_classes', None)
    classes = classes if isinstance(classes, int) and classes > 0 else 2
    tensor = next(owner.parameters(), None)
    device = None if tensor is None else tensor.device
    return activation_of(found, classes, device) == 'sigmoid'
