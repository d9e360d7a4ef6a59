"""The rows of two heads with their weights, chosen and put behind one another for a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional.compiling import is_compiling
from ..functional.rows import gather_rows, places
from ..losses.base import LogitLoss
from ..losses.chunked import PART, chunked_mean
from ..views.predictions import Level, Predictions
from ..views.scores import class_scores
from .pairing import check_needs, refuse_many_rows
from .selection import Selection

# Where nearly all rows are compared anyway or all of them are few, weights do what copies would.
SMALL = ('roi', 'query', 'image')
Columns = tuple[Tensor, Tensor]


class HeadRows:
    """Two heads, seen the way a selection asks for."""

    def __init__(
        self,
        loss: LogitLoss,
        student: Predictions,
        teacher: Predictions,
        selection: Selection,
        columns: Columns | None,
        images: int,
    ) -> None:
        self.loss, self.student, self.teacher = loss, student, teacher
        self.selection, self.columns, self.images = selection, columns, images
        first = student.levels[0].logits
        self.device = first.device
        self.dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.per_image = sum(x.logits.shape[1:3].numel() for x in student.levels)  # rows
        self.count = first.shape[0] * self.per_image  # of all rows
        self.classes = student.num_classes
        if columns is not None:
            self.classes = len(columns[0]) - int(student.background)
        self.labels = self._labels()
        self.masks = self._masks()

    def _labels(self) -> list[Tensor] | None:
        """Labels of the levels, as indices into the compared columns; -1 for none of them."""
        labels = [x.labels for x in self.student.levels if x.labels is not None]
        if 'labels' in self.loss.needs or self.by_label:
            return labels if self.columns is None else self._places(labels)
        if len(labels) < len(self.student.levels) or not self.hides_classes:
            return None
        return self._places(labels)

    @property
    def by_label(self) -> bool:
        """Whether labels choose the rows."""
        return self.selection.by == 'positive' or self.selection.positives

    def _places(self, labels: Sequence[Tensor]) -> list[Tensor]:
        """Labels as indices into the compared columns; -1 for none of them."""
        assert self.columns is not None
        known = self.student.num_classes
        table = torch.full((known + 1,), -1, device=self.device, dtype=torch.long)
        places = torch.arange(len(self.columns[0]), device=self.device)
        table = table.scatter(0, self.columns[0], places)
        table[known] = self.classes
        inside = [(x >= 0) & (x <= known) for x in labels]
        return [torch.where(i, table[x.clamp(0, known)], -1) for i, x in zip(inside, labels)]

    def _masks(self) -> list[Tensor | None]:
        """Rows of each level that may count, (N, P, A) bool; None if all of them may."""
        masks = []
        for i, (s, t) in enumerate(zip(self.student.levels, self.teacher.levels)):
            parts = [x for x in (s.valid, t.valid) if x is not None]
            if s.label_weights is not None:
                parts.append(s.label_weights > 0)
            if self.hides_classes and self.labels is not None:
                parts.append(self.labels[i] >= 0)
            elif 'labels' in self.loss.needs and (self.columns or self.student.kind != 'image'):
                # The background has no column in a softmax head without one, and is not learnt.
                sigmoid = self.student.activation == 'sigmoid' or self.student.background
                assert self.labels is not None
                label = self.labels[i]
                parts.append((label >= 0) & (label <= self.classes - 1 + int(sigmoid)))
            mask: Tensor | None = None
            for part in parts:
                mask = part if mask is None else mask & part
            masks.append(mask)
        return masks

    @property
    def hides_classes(self) -> bool:
        """Whether rows may have a class of which the teacher, not knowing it, says 'background'."""
        return self.columns is not None and self.student.background

    @property
    def in_parts(self) -> bool:
        """Whether the loss goes over the maps part by part; the compiler has means of its own."""
        large = sum(x.logits.numel() for x in self.student.levels) > PART
        return (
            self.loss.separable
            and not is_compiling()
            and self.student.kind not in SMALL
            and (large or self.student.kind == 'dense')
        )

    @property
    def masks_positives(self) -> bool:
        """Whether positives are weights instead of a copy of their rows."""
        if self.selection.by != 'positive':
            return False
        k = self.selection.k
        if k is None or self.student.kind in SMALL or self.per_image <= k:
            return True
        return self.student.kind == 'pixel' and self.loss.separable  # nearly all pixels are

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
        shapes = [x.logits.shape[:3] for x in self.student.levels]
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
        own = None if self.columns is None else self.columns[0]
        return [class_scores(x, self.student, own).to(self.dtype) for x in self.student.levels]

    def known_labels(self) -> list[Tensor]:
        """Labels for the loss: an index also in rows that do not count."""
        assert self.labels is not None
        return self.labels if self.columns is None else [x.clamp(min=0) for x in self.labels]

    def positives(self) -> list[Tensor]:
        """Rows with a class, (N, P, A) bool for each level."""
        assert self.labels is not None
        return [(x >= 0) & (x < self.classes) for x in self.labels]

    def scores(self) -> list[Tensor]:
        """The teacher's scores, (N, P, A) for each level."""
        columns = None if self.columns is None else self.columns[1]
        return [class_scores(x, self.teacher, columns).to(self.dtype) for x in self.teacher.levels]

    def choose(self) -> tuple[Tensor | None, Tensor]:
        """The best rows of each image (N, K), and their weights (N, K), 0 for mere padding.

        No index means all of them, in their order.
        """
        by, k = self.selection.by, self.selection.k
        assert k is not None  # 'all' and the like choose none
        if self.student.levels[0].images is not None:  # the rows of all images, one after another
            k *= self.images
        if by == 'random':
            images = self.student.levels[0].logits.shape[0]
            random = self.loss.random_generator(self.device)
            key = torch.rand(
                images, self.per_image, generator=random, device=self.device, dtype=self.dtype
            )
        else:
            key = self.flat(self.scores())
        masks = [
            m if m is not None else torch.ones_like(x.logits[..., 0], dtype=torch.bool)
            for m, x in zip(self.masks, self.student.levels)
        ]
        mask = self.flat(masks)
        if by == 'positive':
            mask = mask & self.flat(self.positives())
        elif self.selection.positives:
            key = key + 2 * self.flat(self.positives())  # scores lie in 0 to 1
        key = torch.where(mask, key, torch.full((), -1.0, dtype=self.dtype, device=self.device))
        factors = self.factors()
        weights = torch.ones_like(key) if factors is None else self.flat(factors)
        weights = torch.where(key != -1, weights, torch.zeros_like(weights))
        if k >= self.per_image:
            return None, weights
        index = key.detach().topk(k, dim=1, sorted=False).indices
        return index, weights.gather(1, index)

    def compare(self, index: Tensor | None, weights: Tensor | None) -> Tensor:
        """The loss of all rows, or of those of an index (N, K)."""
        if index is None:
            refuse_many_rows(self.loss, self.student, self.count)
        logits = [
            _rows([x.logits for x in head.levels], index, which)
            for head, which in zip((self.student, self.teacher), self.columns or (None, None))
        ]
        extras = {name: self._extra(name, index) for name in self.loss.needs}
        if weights is not None:
            extras['weights'] = weights.reshape(-1)
        return self.loss(*logits, **extras)

    def _extra(self, name: str, index: Tensor | None) -> Tensor:
        """What else a loss needs, row by row."""
        levels = self.student.levels
        if name == 'features':
            return self._features(index)
        if name == 'labels':
            values = self.flat(self.known_labels())
        elif name == 'priors':
            grid = (torch.arange(x.logits.shape[2], device=self.device) for x in levels)
            values = self.flat([a.expand(x.logits.shape[:3]) for a, x in zip(grid, levels)])
        else:
            values = self.flat([_images(x) for x in levels])
        return (values if index is None else values.gather(1, index)).reshape(-1)

    def _features(self, index: Tensor | None) -> Tensor:
        levels = self.student.levels
        maps = [x.features for x in levels if x.features is not None]
        if index is None:
            return torch.cat(
                [
                    f.unsqueeze(2).expand(-1, -1, x.logits.shape[2], -1).flatten(1, 2)
                    for f, x in zip(maps, levels)
                ],
                1,
            ).flatten(0, 1)
        images = torch.arange(index.shape[0], device=self.device)[:, None]
        features = maps[0].new_zeros(*index.shape, maps[0].shape[-1])
        for f, (inside, position, _) in zip(maps, places([x.logits for x in levels], index)):
            if f.shape[1]:
                own = f[images, position]
                features = torch.where(inside[..., None], own, features)
        return features.flatten(0, 1)

    @staticmethod
    def flat(values: Sequence[Tensor]) -> Tensor:
        """Values (N, P, A) of all levels behind one another, (N, rows)."""
        return torch.cat([x.flatten(1) for x in values], 1)

    def amount(self, weights: Sequence[Tensor] | None) -> Tensor:
        """The sum of the weights."""
        if weights is None:
            return torch.full((), float(self.count), dtype=self.dtype, device=self.device)
        amounts = [w.detach().sum() for w in weights]
        total = amounts[0]
        for amount in amounts[1:]:
            total = total + amount
        return total


def _rows(maps: Sequence[Tensor], index: Tensor | None, columns: Tensor | None) -> Tensor:
    """Rows (K, C) of maps (N, P, A, C): all of them image by image, or those of an index."""
    if index is not None:
        rows = gather_rows(maps, index).flatten(0, 1)
    elif len(maps) == 1:
        rows = maps[0].flatten(0, 2)
    else:
        rows = torch.cat([x.flatten(1, 2) for x in maps], 1).flatten(0, 1)
    return rows if columns is None else rows.index_select(1, columns)


def _images(level: Level) -> Tensor:
    """The image that each row is from, (N, P, A)."""
    shape = level.logits.shape[:3]
    if level.images is not None:
        return level.images.unsqueeze(2).expand(shape)
    return torch.arange(shape[0], device=level.logits.device).view(-1, 1, 1).expand(shape)


def evaluate(
    loss: LogitLoss,
    student: Predictions,
    teacher: Predictions,
    selection: Selection,
    columns: Columns | None = None,
    images: int = 1,
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
        images: how many images there are, for heads that put the rows of all images behind one
            another.

    Returns:
        The mean of the loss over the rows, weighted, or their sum, a scalar with a graph (0 if
        nothing counts); and the sum of the weights, a float scalar without.

    Raises:
        ValueError: something is missing, or there are too many rows.
    """
    check_needs(loss, student, selection)
    # Also for what is in front of the loss: autocast would widen whole maps where it joins levels.
    with torch.autocast(student.levels[0].logits.device.type, enabled=False):
        mean, amount = _evaluate(HeadRows(loss, student, teacher, selection, columns, images))
        return (mean * amount if selection.reduction == 'sum' else mean), amount


def _evaluate(heads: HeadRows) -> tuple[Tensor, Tensor]:
    """The weighted mean over the rows, and the sum of the weights."""
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
