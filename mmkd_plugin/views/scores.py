"""How sure a head is of an object, in which selections rank and weigh its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.checks import widen
from .predictions import Level, Predictions

PART = 2**18  # logits that are looked at together where that takes temporary tensors


def logits_of(probabilities: Tensor) -> Tensor:
    """What a sigmoid makes them of, in float32 or wider.

    They are kept from 1 by a rounding, and from 0 by less, down to 1e-7: a head that is sure of
    nothing has small probabilities, which half precision tells apart.
    """
    info = torch.finfo(probabilities.dtype)
    low = max(info.tiny, 1e-7)
    return widen(probabilities).clamp(low, 1 - info.eps).logit()


@torch.no_grad()
def class_scores(level: Level, head: Predictions, columns: Tensor | None = None) -> Tensor:
    """How sure a head is of an object at each place: its best foreground class, times quality.

    Args:
        level: the head's logits (N, P, A, C); its ``score``, where it has one, is the answer.
        head: whose level it is.
        columns: which columns count, the background's last; None for all.

    Returns:
        (N, P, A), float32 or wider, without gradient.
    """
    if level.score is not None:
        return widen(level.score)
    logits = level.logits
    foreground = (logits.shape[3] if columns is None else len(columns)) - int(head.background)
    if head.activation == 'sigmoid' and columns is None:
        score = widen(logits[..., :foreground].amax(3)).sigmoid()
    else:
        step = max(1, PART // max(1, logits.shape[0] * logits.shape[2] * logits.shape[3]))
        parts = [logits[:, :0], *logits.split(step, 1)] if logits.shape[1] else [logits]
        score = torch.cat([_best(x, head.activation, foreground, columns) for x in parts], 1)
    return score if level.quality is None else score * widen(level.quality).sigmoid()


def _best(x: Tensor, activation: str, foreground: int, columns: Tensor | None) -> Tensor:
    """Probability of the best of the first ``foreground`` (of these columns)."""
    best = (x if columns is None else x.index_select(3, columns))[..., :foreground].amax(3)
    if activation == 'sigmoid':
        return widen(best).sigmoid()
    return (widen(best) - widen(x).logsumexp(3)).exp()
