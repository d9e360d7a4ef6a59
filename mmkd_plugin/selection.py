"""Which rows of two heads a loss compares, and how much each of them counts.

    select='all'                                           # every valid row
    select='positive'                                      # rows that the assigner gave a class
    select='score_weighted'                                # every row, by the teacher's score
    select=dict(by='teacher_topk', k=512, positives=True)  # those the teacher is surest of
    select=dict(by='random', k=512)                        # other ones in every step

Rows count if they are valid and the student's own loss does not ignore them. A selection of rows
has a fixed size, filled up with rows of weight 0, and the weights stay on the device: nothing here
waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_bool, shown
from .functional.checks import check_choice
from .head_rows import Columns, HeadRows
from .losses.base import LogitLoss
from .losses.chunked import chunked_mean
from .registry import check_keys
from .views.predictions import Predictions

SELECTIONS = ('all', 'positive', 'score_weighted', 'teacher_topk', 'random')
DEFAULT_K = dict(positive=2048, teacher_topk=512, random=512)


@dataclass(frozen=True)
class Selection:
    """A checked ``select`` of a term.

    Attributes:
        by: one of ``SELECTIONS``.
        k: rows per image at most, where a number of rows is chosen; where the rows of all images
            stand behind one another (RoIs, masks) so many on average. For ``'positive'`` those of
            which the teacher is surest, should there be more.
        positives: with ``'teacher_topk'``: rows with a class come first, however sure it is.
    """

    by: str
    k: int | None = None
    positives: bool = False

    def __str__(self) -> str:
        more = f' (k={self.k})' if self.k else ''
        return self.by + more + (' after the positives' if self.positives else '')


def parse_select(config: str | dict | None, where: str) -> Selection | None:
    """Checks the ``select`` of a term; None (the loss decides) stays None.

    Args:
        config: a name, or ``dict(by=..., k=..., positives=...)``.
        where: names the config entry in error messages.

    Raises:
        ValueError: an unknown name or key, or a value that does not fit.

    Example:
        >>> parse_select(dict(by='teacher_topk', k=100), 'select')
        Selection(by='teacher_topk', k=100, positives=False)
    """
    if config is None or isinstance(config, Selection):
        return config
    if isinstance(config, str):
        config = dict(by=config)
    if not isinstance(config, dict) or 'by' not in config:
        raise ValueError(
            f'{where} must be one of {", ".join(map(repr, SELECTIONS))}, or a dict such as '
            f"dict(by='teacher_topk', k=512, positives=True), got {shown(config)}."
        )
    check_keys(config, ('by', 'k', 'positives'), where)
    by = config['by']
    check_choice(f'{where}.by' if len(config) > 1 else where, by, SELECTIONS)
    if by not in DEFAULT_K and config.get('k') is not None:
        raise ValueError(f'{where}: {by!r} takes all rows; leave k={config["k"]!r} out.')
    k = config.get('k', DEFAULT_K.get(by))
    if by in DEFAULT_K and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f'{where}: k={k!r} must be a number of rows per image, 1 or more.')
    positives = check_bool(config.get('positives', False), f'{where}: positives')
    if positives and by != 'teacher_topk':
        raise ValueError(f"{where}: positives={positives!r} belongs to 'teacher_topk'.")
    return Selection(by, k, positives)


def evaluate(
    loss: LogitLoss,
    student: Predictions,
    teacher: Predictions,
    selection: Selection,
    columns: Columns | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of the selected rows.

    Args:
        loss: connected, and told the activation.
        student: the student's rows.
        teacher: the teacher's, whose levels have the same (N, P, A).
        selection: see :class:`Selection`.
        columns: which columns of student and teacher are compared, for heads that share some of
            their classes only; background columns, where there are any, last. Rows whose label is
            none of them are left out if the loss needs labels.

    Returns:
        The mean of the loss over the rows, weighted, a scalar with a graph (0 if nothing counts);
        and the sum of the weights, a float scalar without.

    Raises:
        ValueError: something is missing, or there are too many rows.
    """
    # Also for what is in front of the loss: autocast would widen whole maps where it joins levels.
    with torch.autocast(student.levels[0].logits.device.type, enabled=False):
        return _evaluate(HeadRows(loss, student, teacher, selection, columns))


def _evaluate(heads: HeadRows) -> tuple[Tensor, Tensor]:
    if heads.selection.by in ('all', 'score_weighted') or heads.masks_positives:
        weights = heads.weights()
        if heads.in_parts:
            value = chunked_mean(
                heads.loss,
                [x.logits for x in heads.student.levels],
                [x.logits for x in heads.teacher.levels],
                weights,
                heads.labels if 'labels' in heads.loss.needs else None,
                heads.columns,
            )
            return value, heads.amount(weights)
        index, flat = None, None if weights is None else heads.flat(weights)
    else:
        index, flat = heads.choose()
    return heads.compare(index, flat), heads.amount(None if flat is None else [flat])
