"""So many rows of each image: selections with a ``k``, such as ``teacher_topk``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.rows import gather_rows, places
from .row_weights import RowWeights


class ChosenRows:
    """What a loss is called with where a selection has chosen rows.

    Args:
        heads: all rows.
        index: which of them, for each image, (N, K).
    """

    def __init__(self, heads: RowWeights, index: Tensor) -> None:
        self.heads, self.index = heads, index

    @property
    def rows_of_image(self) -> int | None:
        """How many rows each image has; None where only the device knows."""
        return None if self.heads.own.levels[0].images is not None else self.index.shape[1]

    def logits(self) -> list[Tensor]:
        """The logits (N K, C) of student and teacher."""
        heads, found = self.heads, []
        for head, which in zip((heads.own, heads.theirs), heads.columns or (None, None)):
            rows = gather_rows([x.logits for x in head.levels], self.index).flatten(0, 1)
            found.append(rows if which is None else rows.index_select(1, which))
        return found

    def extra(self, name: str) -> Tensor:
        """What else a loss needs, row by row: (N K,), of features (N K, D), of truth (N K, 4)."""
        if name == 'features':
            return self._features()
        if name == 'truth':
            truth = [x.truth for x in self.heads.own.levels if x.truth is not None]
            return gather_rows(truth, self.index).flatten(0, 1)
        return self.heads.values(name).gather(1, self.index).reshape(-1)

    def _features(self) -> Tensor:
        levels, index = self.heads.own.levels, self.index
        maps = [x.features for x in levels if x.features is not None]
        images = torch.arange(index.shape[0], device=index.device)[:, None]
        features = maps[0].new_zeros(*index.shape, maps[0].shape[-1])
        for f, (inside, position, _) in zip(maps, places([x.logits for x in levels], index)):
            if f.shape[1]:
                own = f[images, position]
                features = torch.where(inside[..., None], own, features)
        return features.flatten(0, 1)


def choose(heads: RowWeights) -> tuple[Tensor | None, Tensor]:
    """The best rows of each image.

    Args:
        heads: all rows, and a selection with a number of them.

    Returns:
        Their index (N, K), None for all rows in their order; and their weights (N, K), 0 for mere
        padding.
    """
    selection, k = heads.selection, heads.selection.k
    assert k is not None  # 'all' and the like choose none
    if heads.own.levels[0].images is not None:  # the rows of all images, one after another
        k *= heads.images
    key = heads.flat(heads.scores()) if selection.by != 'random' else _random(heads)
    masks = [
        m if m is not None else torch.ones_like(x.logits[..., 0], dtype=torch.bool)
        for m, x in zip(heads.masks, heads.own.levels)
    ]
    mask = heads.flat(masks)
    if selection.by == 'positive':
        mask = mask & heads.flat(heads.positives())
    elif selection.positives:
        key = key + 2 * heads.flat(heads.positives())  # scores lie in 0 to 1
    key = torch.where(mask, key, torch.full((), -1.0, dtype=heads.dtype, device=heads.device))
    factors = heads.factors()
    weights = torch.ones_like(key) if factors is None else heads.flat(factors)
    weights = torch.where(key != -1, weights, torch.zeros_like(weights))
    if k >= heads.per_image:
        return None, weights
    index = key.detach().topk(k, dim=1, sorted=False).indices
    return index, weights.gather(1, index)


def _random(heads: RowWeights) -> Tensor:
    shape = heads.own.levels[0].logits.shape[0], heads.per_image
    generator = heads.loss.random_generator(heads.device)
    return torch.rand(shape, generator=generator, device=heads.device, dtype=heads.dtype)
