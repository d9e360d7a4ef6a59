"""Before training: what two heads tell of themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...errors import TapError
from ...losses.row_base import RowLoss
from ...views import HeadSpec, LogitView
from ..selection import Selection


def check_heads(
    views: tuple[LogitView, LogitView],
    specs: tuple[Sequence[HeadSpec], Sequence[HeadSpec]],
    models: tuple[nn.Module, nn.Module],
    class_map: Sequence[int] | None,
) -> None:
    """Compares two heads as far as they tell before any image.

    Raises:
        TapError: other numbers of heads, classes or columns, or other activations.
    """
    student, teacher = views
    names = (type(models[0]).__name__, type(models[1]).__name__)
    if teacher.teacher_only:  # brings any head to the student's activation, and to each of its own
        pairs = [(own, specs[1][0]) for own in specs[0]]
    else:
        _check_counts(specs, names)
        pairs = list(zip(*specs))
    for own, theirs in pairs:
        if student.of_classes and own.num_classes != theirs.num_classes and class_map is None:
            raise TapError(
                f'the student ({names[0]}, {own.label!r}) has {own.num_classes} '
                f'classes and the teacher ({names[1]}, {theirs.label!r}) {theirs.num_classes}. '
                'Their logits do not correspond: take a teacher of the same classes, or say which '
                "classes they share: teacher=dict(..., class_map='names') or a dict of names.",
                student_classes=own.num_classes,
                teacher_classes=theirs.num_classes,
            )
        if not teacher.teacher_only:
            _check_form(own, theirs, names, student.of_classes)


def _check_counts(
    specs: tuple[Sequence[HeadSpec], Sequence[HeadSpec]], names: tuple[str, str]
) -> None:
    if len(specs[0]) == len(specs[1]):
        return
    lists = [', '.join(spec.label for spec in own) for own in specs]
    raise TapError(
        f'the student ({names[0]}) has {len(specs[0])} heads to distil '
        f'({lists[0]}) and the teacher ({names[1]}) has {len(specs[1])} '
        f'({lists[1]}): stages and decoder layers are compared one by one. Take a teacher '
        "with as many, let its boxes speak (teacher='detections'), or distil features.",
        student_heads=len(specs[0]),
        teacher_heads=len(specs[1]),
    )


def _check_form(own: HeadSpec, theirs: HeadSpec, names: tuple[str, str], of_classes: bool) -> None:
    if (own.activation, own.background) == (theirs.activation, theirs.background):
        return
    by_boxes = own.kind in ('dense', 'roi', 'query') and of_classes
    raise TapError(
        f'the logits of the student ({names[0]}, {own.label!r}) are for a {_form(own)}, those of '
        f'the teacher ({names[1]}, {theirs.label!r}) for a {_form(theirs)}. '
        + (
            "Let the teacher's boxes speak instead: teacher='detections'."
            if by_boxes
            else "Take a teacher of the student's kind, or distil features."
        ),
        student_form=_form(own),
        teacher_form=_form(theirs),
    )


def _form(spec: HeadSpec) -> str:
    return spec.activation + (' with a background column' if spec.background else '')


def refuse_sum(loss: RowLoss, selection: Selection) -> None:
    """Refuses to add up rows that a loss only looks at together.

    Raises:
        TapError: saying which losses have values of rows.
    """
    if selection.reduction == 'sum' and not loss.separable:
        raise TapError(
            "select.reduction='sum' adds up the values of single rows, and "
            f'{type(loss).__name__} has none: it looks at rows together. Take KDLoss, '
            "DKDLoss or LoCaLoss, or reduction='mean'."
        )
