"""Bins of box sides of dense heads that predict distributions of distances (GFL and its kin)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..taps import Recorder, TapError
from ..taps.foreign import AnyModule
from .base import LogitView
from .dense import HEAD, DenseLogits
from .dense_boxes import reg_max
from .predictions import HeadSpec, Level, Predictions
from .scores import class_scores


@dataclass(frozen=True)
class ClassRows:
    """The student's class logits, beside which the teacher's are read first."""

    classes: Predictions


class DenseBins(DenseLogits):
    """Bins of the four box sides (GFL's general distributions): logits (N, P, 4 A, r + 1).

    A row is one side of one box; softmax over its bins is the distribution of the side's distance.
    Sides of a position that the student's head assigned to an object have label 0, others
    ``num_classes``, which is r + 1. How sure a bin is says nothing of an object, so ``score``, the
    best class's probability (times the quality's), serves where rows are weighted or ranked; each
    head has its own.
    """

    of_classes = False
    default_select = 'positive'  # background has no box

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        super().__init__(model, [])
        if 'features' in needs:
            raise TapError(
                'the loss needs features of a classification layer, which the view '
                "'dfl_logits' has not. Take a loss without them, such as KDLoss."
            )
        if 'labels' in needs:
            raise TapError(
                'the loss needs the label of a row among its columns, but those of '
                "'dfl_logits' are distances, of which none is the label. Take KDLoss."
            )
        self.bins = model.bbox_head.reg_max + 1
        self.side_spec = HeadSpec(
            label=f'{HEAD} bins',
            kind='dense',
            activation='softmax',
            num_classes=self.bins,
            priors=4 * max(self.grid.priors),
        )

    def compares_classes(self, model: AnyModule) -> bool:
        return False

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        return super().fits(model) and reg_max(model.bbox_head) is not None

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return [self.side_spec]

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if isinstance(student, DenseLogits):
            self._check_priors(student)
        super().check_pair(student, models)
        if not isinstance(student, DenseBins) or student.bins != self.bins:
            name = getattr(student, 'name', type(student).__name__)
            raise TapError(
                f'{name} has {getattr(student, "bins", "no")} bins for a '
                f'side, the teacher, {self.name}, {self.bins}: distances of other ranges do not '
                'correspond. Give both heads the same reg_max.'
            )

    def _check_priors(self, student: DenseLogits) -> None:
        """One box is taught by one box: bins of several cannot be merged."""
        own, theirs = (dict(zip(x.grid.strides, x.grid.priors)) for x in (student, self))
        for stride, count in own.items():
            if count != theirs.get(stride, count):
                raise TapError(
                    f'{student.name} has {count} anchors per position at stride {stride}, the '
                    f'teacher, {self.name}, {theirs[stride]}: the bins of several boxes cannot be '
                    'merged into one.'
                )

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
    ) -> list[Predictions]:
        classes = student and [p.handover.classes for p in student]
        (own,) = super().read(recorder, data_samples, classes)
        levels = [self._sides(level, own) for level in own.levels]
        return [Predictions.of(self.side_spec, levels, ClassRows(own))]

    def _sides(self, level: Level, classes: Predictions) -> Level:
        """The bins of a level's boxes, from its class logits and boxes."""
        if level.boxes is None or level.boxes.kind != 'dfl':
            raise TapError(
                f'{self.name} has reg_max and integral, but no output of 4 x '
                f'{self.bins} channels, so its bins were not found. Tap a module path instead.'
            )
        sides = Level(
            logits=level.boxes.raw.unflatten(3, (4, self.bins)).flatten(2, 3),
            score=_each_side(class_scores(level, classes)),
            boxes=level.boxes,
            centers=level.centers,
            stride=level.stride,
        )
        if level.valid is not None:
            sides.valid = _each_side(level.valid)
        if level.labels is not None:
            object_ = (level.labels >= 0) & (level.labels < classes.num_classes)
            sides.labels = _each_side(torch.where(object_, 0, self.bins))
        if level.label_weights is not None:
            sides.label_weights = _each_side(level.label_weights)
        return sides


def _each_side(values: Tensor) -> Tensor:
    """(N, P, A) repeated for the four sides of each box, (N, P, 4 A)."""
    return values.unsqueeze(-1).expand(*values.shape, 4).flatten(2)
