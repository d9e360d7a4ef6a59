"""All rows of two heads, as a selection asks for them: which of them count, and how much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses.row_base import RowLoss
from ..views.predictions import Level, Predictions
from ..views.scores import class_scores
from .selection import Selection
from .shared_classes import Columns, labels_in


class RowWeights:
    """The rows of two heads, and how much a selection lets each of them count.

    Args:
        loss: what compares them.
        own: the student's logits.
        theirs: the teacher's, whose levels have the same (N, P, A).
        selection: which rows count.
        columns: those of student and teacher that are compared; None for all.
        images: how many images there are, for heads that put the rows of all images behind one
            another.

    Attributes:
        labels: of each level, (N, P, A) indices into the compared columns, -1 for none of them;
            None where nothing asks for them.
        masks: of each level the rows that may count, (N, P, A) bool; None if all of them may.
        per_image: number of rows of an image.
        count: number of all rows.
        classes: foreground classes among the compared columns.
    """

    def __init__(
        self,
        loss: RowLoss,
        own: Predictions,
        theirs: Predictions,
        selection: Selection,
        columns: Columns | None,
        images: int,
    ) -> None:
        self.loss, self.own, self.theirs = loss, own, theirs
        self.selection, self.columns, self.images = selection, columns, images
        first = own.levels[0].logits
        self.device = first.device
        self.dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.per_image = sum(x.logits.shape[1:3].numel() for x in own.levels)
        self.count = first.shape[0] * self.per_image
        self.classes = own.num_classes
        if columns is not None:
            self.classes = len(columns[0]) - int(own.background)
        self.labels = self._labels()
        self.masks = self._masks()

    # -- what there is -----------------------------------------------------------------------

    @property
    def are_few(self) -> bool:
        """Whether a head of this kind has so few rows that weights do what copies would."""
        return self.own.kind in ('roi', 'query', 'image', 'keypoint')

    @property
    def rows_of_image(self) -> int | None:
        """How many rows each image has; None where only the device knows."""
        return None if self.own.levels[0].images is not None else self.per_image

    @property
    def by_label(self) -> bool:
        """Whether labels choose the rows."""
        return self.selection.by == 'positive' or self.selection.positives

    @property
    def hides_classes(self) -> bool:
        """Whether rows may have a class of which the teacher, not knowing it, says 'background'."""
        return self.columns is not None and self.own.background

    def _labels(self) -> list[Tensor] | None:
        labels = [x.labels for x in self.own.levels if x.labels is not None]
        wanted = {'labels', 'truth'} & set(self.loss.needs) or self.by_label
        if not wanted and (len(labels) < len(self.own.levels) or not self.hides_classes):
            return None
        if self.columns is None:
            return labels
        return labels_in(self.columns[0], labels, self.own.num_classes, self.classes)

    def _masks(self) -> list[Tensor | None]:
        masks = []
        for i, (level, other) in enumerate(zip(self.own.levels, self.theirs.levels)):
            parts = [x for x in (level.valid, other.valid) if x is not None]
            if level.label_weights is not None:
                parts.append(level.label_weights > 0)
            if 'truth' in self.loss.needs:  # which only rows with an object have
                parts.append(self.positives()[i])
            elif self.hides_classes and self.labels is not None:
                parts.append(self.labels[i] >= 0)
            elif 'labels' in self.loss.needs and (self.columns or self.own.kind != 'image'):
                # The background has no column in a softmax head without one, and is not learnt.
                sigmoid = self.own.activation == 'sigmoid' or self.own.background
                assert self.labels is not None
                label = self.labels[i]
                parts.append((label >= 0) & (label <= self.classes - 1 + int(sigmoid)))
            mask: Tensor | None = None
            for part in parts:
                mask = part if mask is None else mask & part
            masks.append(mask)
        return masks

    # -- how much each row counts ------------------------------------------------------------

    def weights(self) -> list[Tensor] | None:
        """Weights of all rows, (N, P, A) for each level; None if all count 1."""
        masks = self.masks
        if self.selection.by == 'positive':
            masks = [p if m is None else m & p for m, p in zip(masks, self.positives())]
        factors = self.factors()
        if factors is not None:
            zero = torch.zeros((), dtype=self.dtype, device=self.device)
            pairs = zip(masks, factors)
            return [x if mask is None else torch.where(mask, x, zero) for mask, x in pairs]
        if all(m is None for m in masks):
            return None
        shapes = [x.logits.shape[:3] for x in self.own.levels]
        return [
            torch.ones(shape, dtype=self.dtype, device=self.device)
            if m is None
            else m.to(self.dtype)
            for m, shape in zip(masks, shapes)
        ]

    def factors(self) -> list[Tensor] | None:
        """What each row that counts is weighted with, (N, P, A) for each level; None for 1."""
        if self.selection.by == 'score_weighted':
            return self.scores()
        if self.selection.weights is None:
            return None
        columns = None if self.columns is None else self.columns[0]
        return [class_scores(x, self.own, columns).to(self.dtype) for x in self.own.levels]

    def scores(self) -> list[Tensor]:
        """The teacher's scores, (N, P, A) for each level."""
        columns = None if self.columns is None else self.columns[1]
        return [class_scores(x, self.theirs, columns).to(self.dtype) for x in self.theirs.levels]

    def positives(self) -> list[Tensor]:
        """Rows with a class, (N, P, A) bool for each level."""
        assert self.labels is not None
        return [(x >= 0) & (x < self.classes) for x in self.labels]

    def amount(self, weights: Sequence[Tensor] | None) -> Tensor:
        """The sum of the weights."""
        if weights is None:
            return torch.full((), float(self.count), dtype=self.dtype, device=self.device)
        amounts = [w.detach().sum() for w in weights]
        total = amounts[0]
        for amount in amounts[1:]:
            total = total + amount
        return total

    # -- what the loss is called with --------------------------------------------------------

    def logits(self) -> list[Tensor]:
        """The logits (rows, C) of student and teacher, image by image."""
        found = []
        for head, which in zip((self.own, self.theirs), self.columns or (None, None)):
            maps = [x.logits for x in head.levels]
            if len(maps) == 1:
                rows = maps[0].flatten(0, 2)
            else:
                rows = torch.cat([x.flatten(1, 2) for x in maps], 1).flatten(0, 1)
            found.append(rows if which is None else rows.index_select(1, which))
        return found

    def extra(self, name: str) -> Tensor:
        """What else a loss needs, row by row: (rows,); features (rows, D) and truth (rows, 4)."""
        if name == 'truth':
            truth = [x.truth.flatten(1, 2) for x in self.own.levels if x.truth is not None]
            return torch.cat(truth, 1).flatten(0, 1)
        if name != 'features':
            return self.values(name).reshape(-1)
        parts = [
            x.features.unsqueeze(2).expand(-1, -1, x.logits.shape[2], -1).flatten(1, 2)
            for x in self.own.levels
            if x.features is not None
        ]
        return torch.cat(parts, 1).flatten(0, 1)

    def values(self, name: str) -> Tensor:
        """Labels, priors, images or scores of the rows, image by image: (N, per_image)."""
        levels = self.own.levels
        if name == 'scores':
            return self.flat(self.scores())
        if name == 'labels':  # an index also in rows that do not count
            assert self.labels is not None
            labels = self.labels
            return self.flat(labels if self.columns is None else [x.clamp(min=0) for x in labels])
        if name == 'priors':
            grid = (torch.arange(x.logits.shape[2], device=self.device) for x in levels)
            return self.flat([a.expand(x.logits.shape[:3]) for a, x in zip(grid, levels)])
        return self.flat([_images(x) for x in levels])

    @staticmethod
    def flat(values: Sequence[Tensor]) -> Tensor:
        """Values (N, P, A) of all levels behind one another, (N, per_image)."""
        return torch.cat([x.flatten(1) for x in values], 1)


def _images(level: Level) -> Tensor:
    """The image that each row is from, (N, P, A)."""
    shape = level.logits.shape[:3]
    if level.images is not None:
        return level.images.unsqueeze(2).expand(shape)
    return torch.arange(shape[0], device=level.logits.device).view(-1, 1, 1).expand(shape)
