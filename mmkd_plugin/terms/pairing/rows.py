"""In a step: the rows of heads."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import TapError
from ...losses.logit_base import LogitLoss
from ...views import Predictions
from ...views.batch import check_image_count
from ..selection import Selection
from .both import refuse_gradient_free

MAX_ROWS = 2**17  # put behind one another for a loss that cannot take them in parts


def check_batch(own: Sequence[Predictions], images: int | None) -> None:
    """Refuses rows of other images than the batch has, where rows are counted by image.

    Raises:
        TapError: with the numbers.
    """
    for predictions in own:
        level = predictions.levels[0]
        if images is not None and level.images is None:
            check_image_count(level.logits.shape[0], images)


def check_rows(own: Predictions, theirs: Predictions) -> None:
    """Refuses rows that do not correspond, or could not train the student.

    Raises:
        TapError: with the shapes of all levels.
    """
    for level in own.levels:
        refuse_gradient_free(level.logits, own.label)
    shapes = [[tuple(x.logits.shape[:3]) for x in p.levels] for p in (own, theirs)]
    if shapes[0] != shapes[1]:
        raise TapError(
            f'the rows of student {own.label!r} {shapes[0]} and teacher '
            f'{theirs.label!r} {shapes[1]} (images, positions, predictions at each, level by '
            'level) do not correspond.',
            student_rows=shapes[0],
            teacher_rows=shapes[1],
        )


def check_needs(loss: LogitLoss, own: Predictions, selection: Selection) -> None:
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
    if ('labels' in loss.needs or by_label) and any(x.labels is None for x in own.levels):
        _refuse_missing_labels(loss, own, selection)
    if 'features' in loss.needs and any(x.features is None for x in own.levels):
        raise ValueError(
            f'{type(loss).__name__} needs features, which the view on {own.label!r} does not '
            'give; take a loss that needs none (KDLoss, LoCaLoss), or the view of another head.'
        )


def _refuse_missing_labels(loss: LogitLoss, own: Predictions, selection: Selection) -> None:
    who = type(loss).__name__ if 'labels' in loss.needs else f'select={selection.by!r}'
    raise ValueError(
        f'{who} needs labels, but this step brought none for {own.label!r}: '
        + (
            own.no_labels + ' A loss without labels, such as KDLoss with select='
            "'score_weighted', can be used."
            if own.no_labels
            else 'call the student with data_samples that hold its ground truth; a view of '
            'your own must give Level.labels in training.'
        )
    )


def refuse_many_rows(loss: LogitLoss, own: Predictions, count: int) -> None:
    """Refuses more rows than a loss can take that wants all of them at once.

    Raises:
        ValueError: saying how to choose some.
    """
    if count > MAX_ROWS and not loss.separable:
        raise ValueError(
            f'{type(loss).__name__} would compare {count} rows of {own.label!r} at '
            f'once, more than {MAX_ROWS}; choose some of them in the term: '
            "select=dict(by='teacher_topk', k=512, positives=True), or select='positive'."
        )
