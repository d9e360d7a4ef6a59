"""Class logits of heads that mark objects on heat maps (CenterNet, CornerNet)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from ..taps.partial_forward import takes_features
from .base import LogitView, other_kind
from .grid_masks import cell_centers, valid_cells
from .loss_calls import loss_calls
from .predictions import HeadSpec, Level, Predictions, map_rows
from .scores import logits_of

HEAD = 'bbox_head'


@dataclass(frozen=True)
class Form:
    """How a head gives its heat maps.

    Attributes:
        loss: what hears them, and their targets.
        kinds: heat maps of a level, such as those of two corners.
        activated: whether they are probabilities.
    """

    loss: str
    kinds: int
    activated: bool


FORMS = (Form('loss_center_heatmap', 1, True), Form('loss_heatmap', 2, False))


class HeatmapLogits(LogitView):
    """The class logits (N, H W, 1, C) of each heat map, all of them levels of one Predictions.

    Serves CenterNet, and CornerNet and CentripetalNet with the maps of both corners, those of the
    first corner first. A position is labelled with the class whose target is 1 there, else
    background. Near a point the target is a bump, and the head's loss takes such a background less
    seriously. The label's weight is ``(1 - t)^gamma`` as there, with its largest target t and the
    loss's own gamma. A term counts all rows whose label has a weight alike.

    The teacher's maps must be of the student's size. Boxes of a teacher of another kind
    (``'detections'``) teach centres, but no corners, which lie at the rims of boxes.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        head = getattr(model, HEAD)
        self.form = _form(head)
        if 'features' in needs:
            raise TapError(
                f'the loss trains a classifier on features, which the heat maps of '
                f'{type(head).__name__} do not tell. Use KDLoss.'
            )
        loss = getattr(head, self.form.loss)
        self.gamma = float(getattr(loss, 'gamma', 4.0))
        self.boxed = self.form.kinds == 1
        self.count = self.form.kinds * int(getattr(head, 'num_feat_levels', 1))
        self.output = TapPoint(HEAD)
        self.losses = TapPoint(f'{HEAD}.{self.form.loss}', source='input')
        self.points = [self.output, self.losses]
        self.spec = HeadSpec(HEAD, 'dense', 'sigmoid', head.num_classes)

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.output]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, HEAD, None)
        return (
            isinstance(getattr(head, 'num_classes', None), int)
            and any(isinstance(getattr(head, form.loss, None), nn.Module) for form in FORMS)
            and takes_features(model, HEAD)
        )

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, HeatmapLogits) or student.count != self.count:
            raise other_kind(models, f'marks objects on {self.count} heat maps')

    def read(
        self, recorder: Recorder, data_samples: Any, student: list[Predictions] | None = None
    ) -> list[Predictions]:
        maps = self._maps(recorder)
        levels = [Level(map_rows(x).unsqueeze(2)) for x in maps]
        if student is None:
            self._add_targets(recorder, maps, levels)
            for level, x in zip(levels, maps):
                level.valid = valid_cells(x, data_samples).flatten(1).unsqueeze(-1)
                level.centers = cell_centers(x, data_samples)
        else:
            self._check_sizes(student[0].levels, levels)
        return [Predictions.of(self.spec, levels)]

    def _maps(self, recorder: Recorder) -> list[Tensor]:
        """Logits (N, C, H, W) of each heat map."""
        maps = [capture.tensor for capture in recorder.read([self.output])][: self.count]
        widths = [x.shape[1] if x.dim() == 4 else None for x in maps]
        if widths != [self.spec.num_classes] * self.count:
            raise TapError(
                f'{HEAD!r} gave first {[tuple(x.shape) for x in maps]}; known are {self.count} '
                f'heat maps (images, {self.spec.num_classes} classes, height, width).'
            )
        if not self.form.activated:
            return maps
        return [logits_of(x) for x in maps]

    def _check_sizes(self, own: list[Level], levels: list[Level]) -> None:
        counts = [[level.logits.shape[1] for level in x] for x in (own, levels)]
        if counts[0] != counts[1]:
            raise TapError(
                f'the heat maps of the student have {counts[0]} positions, those of the teacher '
                f'{counts[1]}: take a teacher of the same stride, or distil features.'
            )

    def _add_targets(self, recorder: Recorder, maps: list[Tensor], levels: list[Level]) -> None:
        """Labels and their weights. The loss is called level by level, each kind in turn."""
        calls = loss_calls(recorder, self.losses)
        kinds = self.form.kinds
        stacks = range(self.count // kinds)
        order = [stack * kinds + kind for kind in range(kinds) for stack in stacks]
        if len(calls) != len(order):  # no training step
            return
        for level, x, i in zip(levels, maps, order):
            target = calls[i].target
            if target.shape != x.shape:
                raise TapError(
                    f'{self.losses.path!r} got targets {tuple(target.shape)} for heat maps '
                    f'{tuple(x.shape)}: its labels cannot be brought to positions.'
                )
            best, index = map_rows(target).max(-1)
            point = best == 1
            level.labels = torch.where(point, index, self.spec.num_classes).unsqueeze(-1)
            weights = torch.where(point, 1.0, (1 - best) ** self.gamma)
            level.label_weights = weights.unsqueeze(-1)


def _form(head: AnyModule) -> Form:
    return next(form for form in FORMS if isinstance(getattr(head, form.loss, None), nn.Module))
