"""What fits what: every refusal of a loss, a tap or a view that would compare the wrong things.

The messages do not say which term they speak of: whoever builds or runs a term puts that in front
(:func:`mmkd_plugin.errors.placed`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import TapError
from ..losses.base import DistillLoss, LogitLoss
from ..taps import Capture
from ..views import HeadSpec, LogitView, Predictions, TapView
from ..views.activation import activation_of, class_loss
from ..views.batch import check_images
from .config import TermConfig
from .selection import Selection

MAX_ROWS = 2**17  # put behind one another for a loss that cannot take them in parts

# -- before training: the two places and the loss ------------------------------------------------


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
    if not isinstance(loss, LogitLoss):
        raise TapError(
            f'{type(loss).__name__} compares feature maps, but student={config.student!r} gives '
            "rows of class logits. Tap a module path, such as 'neck', or take a loss on logits."
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


# -- before training: two heads ------------------------------------------------------------------


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
                "classes they share: teacher=dict(..., class_map='names') or a dict of names."
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
        'with as many, or distil features.'
    )


def _check_form(own: HeadSpec, theirs: HeadSpec, names: tuple[str, str], of_classes: bool) -> None:
    if (own.activation, own.background) == (theirs.activation, theirs.background):
        return
    by_boxes = own.kind == 'dense' and own.activation == 'sigmoid' and of_classes
    raise TapError(
        f'the logits of the student ({names[0]}, {own.label!r}) are for a {_form(own)}, those of '
        f'the teacher ({names[1]}, {theirs.label!r}) for a {_form(theirs)}. '
        + (
            "Let the teacher's boxes speak instead: teacher='detections'."
            if by_boxes
            else "Take a teacher of the student's kind, or distil features."
        )
    )


def _form(spec: HeadSpec) -> str:
    return spec.activation + (' with a background column' if spec.background else '')


def refuse_sum(loss: LogitLoss, selection: Selection) -> None:
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


# -- in a step: tensors at module paths ----------------------------------------------------------


def check_levels(student: Sequence[Capture], teacher: Sequence[Capture]) -> None:
    """Refuses taps that give different numbers of levels.

    Raises:
        TapError: with the shapes of both.
    """
    if len(student) != len(teacher):
        raise TapError(
            f'the student tap gives {len(student)} levels ({_shapes(student)}) and the teacher tap '
            f'{len(teacher)} ({_shapes(teacher)}). Choose the same ones on both sides, for example '
            'with dict(path=..., levels=[...]).'
        )


def _shapes(captures: Sequence[Capture]) -> str:
    return ', '.join(f'{c.label} {tuple(c.tensor.shape)}' for c in captures)


def check_count(what: str, connected: int, student: Sequence, teacher: Sequence) -> None:
    """Refuses a step that gives other numbers of levels or heads than were connected.

    Raises:
        TapError: with the numbers.
    """
    if not len(student) == len(teacher) == connected:
        raise TapError(
            f'{connected} {what} were connected, but this step gave '
            f'{len(student)} (student) and {len(teacher)} (teacher).'
        )


def check_maps(s: Capture, t: Capture, resize: str | None, copies: int) -> None:
    """Refuses two tensors of a level whose sizes, or whose images, do not correspond.

    Raises:
        TapError: with both shapes.
    """
    s_size, t_size = s.tensor.shape[2:], t.tensor.shape[2:]
    if s.tensor.dim() != t.tensor.dim() or (s_size != t_size and resize is None):
        raise TapError(
            f'sizes differ: student {s.label!r} is {tuple(s.tensor.shape)}, '
            f'teacher {t.label!r} is {tuple(t.tensor.shape)}. Tap levels of the same stride '
            "(tools/inspect_model.py shows them), or add resize='bilinear' to the term."
        )
    images = [list(x.tensor.shape[:1]) for x in (s, t)]  # a probe may run one branch only
    if images[0] not in (images[1], [copies * n for n in images[1]]):
        raise TapError(
            f'student {s.label!r} is {tuple(s.tensor.shape)}, teacher '
            f'{t.label!r} is {tuple(t.tensor.shape)}: their first dimensions differ, so the '
            'images of one are not those of the other. Of models that repeat their batch only '
            'TridentNet (num_branch) is known; else tap a module in front of that.'
        )


def refuse_gradient_free(tensor: Tensor, label: str) -> None:
    """Refuses a student tensor from which no gradient would reach the student."""
    if torch.is_grad_enabled() and not tensor.requires_grad:
        raise TapError(
            f'the student tensor at {label!r} carries no gradient, so the term could not '
            'train the student: the tap lies in a frozen or activation-checkpointed part. Tap a '
            'later module.'
        )


# -- in a step: rows of heads --------------------------------------------------------------------


def check_batch(student: Sequence[Predictions], images: int | None) -> None:
    """Refuses rows of other images than the batch has, where rows are counted by image.

    Raises:
        TapError: with the numbers.
    """
    for predictions in student:
        level = predictions.levels[0]
        if images is not None and level.images is None:
            check_images(level.logits.shape[0], images)


def check_rows(student: Predictions, teacher: Predictions) -> None:
    """Refuses rows that do not correspond, or could not train the student.

    Raises:
        TapError: with the shapes of all levels.
    """
    for level in student.levels:
        refuse_gradient_free(level.logits, student.label)
    shapes = [[tuple(x.logits.shape[:3]) for x in p.levels] for p in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise TapError(
            f'the rows of student {student.label!r} {shapes[0]} and teacher '
            f'{teacher.label!r} {shapes[1]} (images, positions, predictions at each, level by '
            'level) do not correspond.'
        )


def check_needs(loss: LogitLoss, student: Predictions, selection: Selection) -> None:
    """Refuses predictions that lack what a loss or a selection needs.

    Raises:
        ValueError: naming what is missing.
    """
    for name in loss.needs:
        if name not in ('labels', 'features', 'images', 'priors'):
            raise ValueError(
                f'{type(loss).__name__} needs {name}, which no view gives; a loss on logits '
                "may need 'labels', 'features', 'images' and 'priors'."
            )
    by_label = selection.by == 'positive' or selection.positives
    if ('labels' in loss.needs or by_label) and any(x.labels is None for x in student.levels):
        _refuse_missing_labels(loss, student, selection)
    if 'features' in loss.needs and any(x.features is None for x in student.levels):
        raise ValueError(
            f'{type(loss).__name__} needs features, which the view on {student.label!r} does not '
            'give; take a loss that needs none (KDLoss, LoCaLoss), or the view of another head.'
        )


def _refuse_missing_labels(loss: LogitLoss, student: Predictions, selection: Selection) -> None:
    who = type(loss).__name__ if 'labels' in loss.needs else f'select={selection.by!r}'
    raise ValueError(
        f'{who} needs labels, but this step brought none for {student.label!r}: '
        + (
            student.no_labels + ' A loss without labels, such as KDLoss with select='
            "'score_weighted', can be used."
            if student.no_labels
            else 'call the student with data_samples that hold its ground truth; a view of '
            'your own must give Level.labels in training.'
        )
    )


def refuse_many_rows(loss: LogitLoss, student: Predictions, rows: int) -> None:
    """Refuses more rows than a loss can take that wants all of them at once.

    Raises:
        ValueError: saying how to choose some.
    """
    if rows > MAX_ROWS and not loss.separable:
        raise ValueError(
            f'{type(loss).__name__} would compare {rows} rows of {student.label!r} at '
            f'once, more than {MAX_ROWS}; choose some of them in the term: '
            "select=dict(by='teacher_topk', k=512, positives=True), or select='positive'."
        )
