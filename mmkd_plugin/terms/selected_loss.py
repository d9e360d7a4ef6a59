"""The loss of two heads: over all rows, over chosen ones, or over whole maps part by part."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.compiling import is_compiling
from ..losses.row_base import RowLoss
from ..views.predictions import Predictions
from ..views.scores import PART
from .chosen_rows import ChosenRows, choose
from .chunked import chunked_mean
from .pairing.rows import check_needs, refuse_many_rows
from .row_weights import RowWeights
from .selection import Selection
from .shared_classes import Columns


def evaluate(
    loss: RowLoss,
    own: Predictions,
    theirs: Predictions,
    selection: Selection,
    columns: Columns | None = None,
    images: int = 1,
) -> tuple[Tensor, Tensor]:
    """The loss of the selected rows.

    Args:
        loss: connected, and told the activation.
        own: the student's rows.
        theirs: the teacher's, whose levels have the same (N, P, A).
        selection: see :class:`Selection`.
        columns: which columns of student and teacher are compared, for heads that share some of
            their classes only; background columns, where there are any, last. Rows whose label is
            none of them are left out if the loss needs labels.
        images: how many images there are, for heads that put the rows of all images behind one
            another.

    Returns:
        The mean of the loss over the rows, weighted, or their sum, a scalar with a graph (0 if
        nothing counts); and the sum of the weights, a float scalar without.

    Raises:
        ValueError: something is missing, or there are too many rows.
    """
    check_needs(loss, own, selection)
    # Also for what is in front of the loss: autocast would widen whole maps where it joins levels.
    with torch.autocast(own.levels[0].logits.device.type, enabled=False):
        mean, amount = _mean(RowWeights(loss, own, theirs, selection, columns, images))
        return (mean * amount if selection.reduction == 'sum' else mean), amount


def _mean(heads: RowWeights) -> tuple[Tensor, Tensor]:
    """The weighted mean over the rows, and the sum of the weights."""
    if not _counts_all(heads):
        index, chosen = choose(heads)
        return _call(heads, index, chosen), heads.amount([chosen])
    weights = heads.weights()
    if _in_parts(heads):
        value = chunked_mean(
            heads.loss,
            [x.logits for x in heads.own.levels],
            [x.logits for x in heads.theirs.levels],
            weights,
            heads.labels if 'labels' in heads.loss.needs else None,
            heads.columns,
        )
        return value, heads.amount(weights)
    flat = None if weights is None else heads.flat(weights)
    return _call(heads, None, flat), heads.amount(None if flat is None else [flat])


def _counts_all(heads: RowWeights) -> bool:
    """Whether no rows are copied: weights say which of them count."""
    by, k = heads.selection.by, heads.selection.k
    if by in ('all', 'score_weighted'):
        return True
    if by != 'positive':
        return False
    if k is None or heads.are_few or heads.per_image <= k:
        return True
    return heads.own.kind == 'pixel' and heads.loss.separable  # nearly all pixels are


def _in_parts(heads: RowWeights) -> bool:
    """Whether the loss goes over the maps part by part; the compiler has means of its own."""
    large = sum(x.logits.numel() for x in heads.own.levels) > PART
    return (
        heads.loss.separable
        and set(heads.loss.needs) <= {'labels'}
        and not is_compiling()
        and not heads.are_few
        and (large or heads.own.kind == 'dense')
    )


def _call(heads: RowWeights, index: Tensor | None, weights: Tensor | None) -> Tensor:
    """The loss of all rows, or of those of an index (N, K)."""
    loss, rows = heads.loss, heads if index is None else ChosenRows(heads, index)
    if index is None:
        refuse_many_rows(loss, heads.own, heads.count)
    logits = rows.logits()
    extras = {name: rows.extra(name) for name in loss.needs}
    if weights is not None:
        extras['weights'] = weights.reshape(-1)
    if 'images' not in loss.needs or is_compiling():
        return loss(*logits, **extras)
    loss.rows_of_image = rows.rows_of_image
    try:
        return loss(*logits, **extras)
    finally:
        loss.rows_of_image = None
