"""Which rows of two heads a loss compares, and how much each of them counts.

    select='all'                                           # every valid row
    select='positive'                                      # rows that the assigner gave a class
    select='score_weighted'                                # every row, by the teacher's score
    select=dict(by='teacher_topk', k=512, positives=True)  # those the teacher is surest of
    select=dict(by='random', k=512)                        # other ones in every step
    select=dict(by='positive', weights='student_score', reduction='sum')  # LD on box bins

Rows count if they are valid and the student's own loss does not ignore them. A selection of rows
has a fixed size, filled up with rows of weight 0, and the weights stay on the device: nothing here
waits for it.

The value is the mean over the selected rows, weighted. A sum is for losses that are published as
one; it grows with the number of objects and of images on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

from ..checks import arguments, check_bool, check_keys, shown
from ..functional.checks import check_choice

SELECTIONS = ('all', 'positive', 'score_weighted', 'teacher_topk', 'random')
DEFAULT_K = dict(positive=2048, teacher_topk=512, random=512)
WEIGHTS = ('student_score',)
REDUCTIONS = ('mean', 'sum')


@dataclass(frozen=True)
class Selection:
    """A checked ``select`` of a term.

    Attributes:
        by: one of ``SELECTIONS``.
        k: rows per image at most, where a number of rows is chosen; where the rows of all images
            stand behind one another (RoIs, masks) so many on average. For ``'positive'`` those of
            which the teacher is surest, should there be more; None takes all of them.
        positives: with ``'teacher_topk'``: rows with a class come first, however sure it is.
        weights: ``'student_score'`` weighs each row by how sure the student is of an object there
            (its best class, times quality), without gradient; None weighs all alike.
        reduction: ``'mean'`` over the weights of all ranks, or ``'sum'`` over a rank's rows.
    """

    by: str
    k: int | None = None
    positives: bool = False
    weights: str | None = None
    reduction: str = 'mean'

    def __str__(self) -> str:
        more = f' (k={self.k})' if self.k else ''
        more += ' after the positives' if self.positives else ''
        more += f' weighted by {self.weights}' if self.weights else ''
        return self.by + more + (', summed' if self.reduction == 'sum' else '')


@overload
def parse_select(config: str | dict | Selection, where: str) -> Selection: ...
@overload
def parse_select(config: None, where: str) -> None: ...
def parse_select(config: str | dict | Selection | None, where: str) -> Selection | None:
    """Checks the ``select`` of a term; None (the loss decides) stays None.

    Args:
        config: a name, or ``dict(by=..., k=..., positives=..., weights=..., reduction=...)``.
        where: names the config entry in error messages.

    Raises:
        ValueError: an unknown name or key, or a value that does not fit.

    Example:
        >>> str(parse_select(dict(by='teacher_topk', k=100), 'select'))
        'teacher_topk (k=100)'
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
    check_keys(config, arguments(Selection), where)
    by = config['by']
    check_choice(f'{where}.by' if len(config) > 1 else where, by, SELECTIONS)
    weights, reduction = config.get('weights'), config.get('reduction', 'mean')
    if weights is not None:
        check_choice(f'{where}.weights', weights, WEIGHTS)
        if by == 'score_weighted':
            raise ValueError(
                f"{where}: 'score_weighted' weighs the rows by the teacher's score already; "
                f"weights={weights!r} goes with 'all', 'positive', 'teacher_topk' or 'random'."
            )
    check_choice(f'{where}.reduction', reduction, REDUCTIONS)
    positives = check_bool(config.get('positives', False), f'{where}: positives')
    if positives and by != 'teacher_topk':
        raise ValueError(f"{where}: positives={positives!r} belongs to 'teacher_topk'.")
    return Selection(by, _chosen_k(config, where), positives, weights, reduction)


def _chosen_k(config: dict, where: str) -> int | None:
    """Rows per image; None where the selection takes all there are."""
    by = config['by']
    if by not in DEFAULT_K:
        if config.get('k') is not None:
            raise ValueError(f'{where}: {by!r} takes all rows; leave k={config["k"]!r} out.')
        return None
    if 'k' not in config and by == 'positive' and config.get('reduction') == 'sum':
        return None  # a sum over a part of the positives would be another sum
    k = config.get('k', DEFAULT_K[by])
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f'{where}: k={k!r} must be a number of rows per image, 1 or more.')
    return k
