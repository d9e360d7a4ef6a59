"""In a step: the rows of heads."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import TapError
from ...losses.row_base import RowLoss
from ...views import LogitView, Predictions
from ...views.batch import check_image_count
from ..selection import Selection
from .both import refuse_gradient_free

KNOWN = ('labels', 'features', 'images', 'priors', 'truth', 'scores')  # beside both tensors
_WITHOUT_LABELS = (
    " A loss without labels, such as KDLoss with select='score_weighted' or BoxDistillLoss with "
    "when='always', can be used."
)
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


def check_needs(loss: RowLoss, own: Predictions, selection: Selection) -> None:
    """Refuses predictions that lack what a loss or a selection needs.

    Raises:
        ValueError: naming what is missing.
    """
    for name in loss.needs:
        if name not in KNOWN:
            raise ValueError(
                f'{type(loss).__name__} needs {name}, which no view gives; a loss on rows '
                f'may need {", ".join(map(repr, KNOWN[:-1]))} and {KNOWN[-1]!r}.'
            )
    if _by_label(loss, selection) and any(x.labels is None for x in own.levels):
        _refuse_missing_labels(loss, own, selection)
    if 'truth' in loss.needs and any(x.truth is None for x in own.levels):
        raise ValueError(
            f'{type(loss).__name__} needs the truth of each row, but this step brought none for '
            f'{own.label!r}: call the student with data_samples that hold its ground truth, or '
            "take when='always'."
        )
    if 'features' in loss.needs and any(x.features is None for x in own.levels):
        raise ValueError(
            f'{type(loss).__name__} needs features, which the view on {own.label!r} does not '
            'give; take a loss that needs none (KDLoss, LoCaLoss), or the view of another head.'
        )


def refuse_unlabelled(loss: RowLoss, selection: Selection, student: LogitView) -> None:
    """Refuses, before training, a head that never says which row has which object.

    Raises:
        TapError: if the loss or the selection needs to know, with the head's reason.
    """
    reason = student.no_truth()
    if reason is not None and _by_label(loss, selection):
        raise TapError(f'{_who(loss, selection)} needs labels. {reason}{_WITHOUT_LABELS}')


def _by_label(loss: RowLoss, selection: Selection) -> bool:
    return selection.by == 'positive' or selection.positives or _wants_labels(loss)


def _who(loss: RowLoss, selection: Selection) -> str:
    return type(loss).__name__ if _wants_labels(loss) else f'select={selection.by!r}'


def _wants_labels(loss: RowLoss) -> bool:
    """Whether it needs to know which object a row was assigned to, or of which class."""
    return 'labels' in loss.needs or 'truth' in loss.needs


def _refuse_missing_labels(loss: RowLoss, own: Predictions, selection: Selection) -> None:
    raise ValueError(
        f'{_who(loss, selection)} needs labels, but this step brought none for {own.label!r}: '
        + (
            own.no_labels + _WITHOUT_LABELS
            if own.no_labels
            else 'call the student with data_samples that hold its ground truth; a view of '
            'your own must give Level.labels in training.'
        )
    )


def refuse_many_rows(loss: RowLoss, own: Predictions, count: int) -> None:
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
