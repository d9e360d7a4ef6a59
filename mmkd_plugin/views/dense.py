"""Class logits of dense heads, which predict at every position of a map.

Served is every ``bbox_head`` that has ``loss_cls``, ``prior_generator`` and ``cls_out_channels``
and gives one map of class logits per level: RetinaNet, GFL, ATSS, FCOS, VFNet, RTMDet, YOLOX,
RepPoints and their kin. Not the heads of two-stage and of query detectors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from ..taps.partial_forward import takes_features
from ..taps.strides import matching
from .base import LogitView
from .dense_boxes import box_maps, read_boxes
from .dense_geometry import by_position, centers_of, level_strides, offset_of, valid_positions
from .dense_targets import DenseTargets
from .predictions import HeadSpec, Level, Predictions

HEAD = 'bbox_head'
_BY_BOXES = "Let the teacher's boxes speak instead: teacher='detections'."


class DenseLogits(LogitView):
    """Class logits (N, P, A, C) of every level, read from the maps (N, A C, H, W) without a copy.

    As the teacher's view it matches levels by stride. Levels that the student lacks are dropped. A
    teacher with several anchors at a position is reduced for a student with one: for each class the
    largest logit counts (sigmoid heads only), the box is that of the anchor with the best class.
    Positions of equal index belong together, even where one head measures from the corner of a
    cell (GFL, RepPoints) and the other from its centre (FCOS).
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        self.needs = tuple(needs)
        head = model.bbox_head
        self.name = f'{HEAD} ({type(head).__name__})'
        if getattr(head.loss_cls, 'activated', False):
            raise TapError(
                f'the class maps of {self.name} are probabilities (loss_cls has '
                'activated=True), not logits. Distil its features instead, such as the neck.'
            )
        self.strides = level_strides(head)
        self.priors = tuple(head.prior_generator.num_base_priors)
        self.anchors = _base_anchors(head)
        self.activation = 'sigmoid' if _sigmoid(head) else 'softmax'
        self.output = TapPoint(HEAD)
        self.targets = DenseTargets(head, HEAD)
        self.features: list[TapPoint] = []
        if 'features' in self.needs:
            self.features = [TapPoint(p, source='input') for p in self._class_layers(head)]
        self.spec = HeadSpec(
            label=HEAD,
            kind='dense',
            activation=self.activation,
            num_classes=head.num_classes,
            background=head.cls_out_channels > head.num_classes,
            feature_dim=self._width(model),
            priors=max(self.priors),
        )

    def _width(self, model: AnyModule) -> int | None:
        """Channels of the features; None if no loss asks for them."""
        if not self.features:
            return None
        return model.get_submodule(self.features[0].path).in_channels

    @property
    def points(self) -> list[TapPoint]:
        return [self.output, *self.targets.points, *self.features]

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.output]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, HEAD, None)
        return (
            isinstance(head, nn.Module)
            and isinstance(getattr(head, 'loss_cls', None), nn.Module)
            and isinstance(getattr(head, 'cls_out_channels', None), int)
            and hasattr(getattr(head, 'prior_generator', None), 'num_base_priors')
            and getattr(model, 'roi_head', None) is None
            and takes_features(model, HEAD)
        )

    # -- pairs -------------------------------------------------------------------------------

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, DenseLogits):
            raise TapError(
                f'the teacher has a dense head ({self.name}), the student has not: '
                f'their rows cannot be matched. {_BY_BOXES}'
            )
        found = matching(student.strides, self.strides)
        missing = [stride for stride, i in zip(student.strides, found) if i is None]
        if missing:
            raise TapError(
                f'the levels of {student.name} have strides {list(student.strides)}, '
                f'those of the teacher, {self.name}, {list(self.strides)}: it has none of stride '
                f'{", ".join(map(str, missing))} to learn from. {_BY_BOXES}'
            )
        for own, i in enumerate(self._matches(student.strides)):
            self._check_priors(student, own, i)

    def _check_priors(self, student: DenseLogits, own: int, i: int) -> None:
        """Refuses numbers of anchors, or anchors, that differ at a student's level ``own``."""
        counts = student.priors[own], self.priors[i]
        at = f'at stride {student.strides[own]}'
        if counts[0] == 1 and counts[1] > 1:
            if self.activation == 'softmax':
                raise TapError(
                    f'{self.name} has {counts[1]} anchors per position {at} and {student.name} '
                    f'one; softmax logits of several anchors have no maximum. {_BY_BOXES}'
                )
        elif counts[0] != counts[1]:
            raise TapError(
                f'{student.name} has {counts[0]} anchors per position {at}, the teacher, '
                f'{self.name}, {counts[1]}: which belongs to which cannot be said. {_BY_BOXES}'
            )
        elif counts[0] > 1 and student.anchors[own] != self.anchors[i]:
            raise TapError(
                f'the anchors {at} differ: {student.name} has '
                f'{student.anchors[own]}, the teacher, {self.name}, {self.anchors[i]} (corners '
                f'around a position, in pixels). Give both the same anchor_generator. {_BY_BOXES}'
            )

    def _matches(self, strides: Sequence[int | None]) -> list[int]:
        """The teacher's level for each of the student's, which :meth:`check_pair` has found."""
        return [i for i in matching(strides, self.strides) if i is not None]

    # -- one step ----------------------------------------------------------------------------

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
    ) -> list[Predictions]:
        head = recorder.model.bbox_head
        groups, no_labels = self._outputs(recorder, head), None
        if student is not None:
            wanted = student[0].levels
            matches = self._matches([level.stride for level in wanted])
            levels = [self._level(head, groups, i) for i in matches]
            levels = [self._aligned(own, level) for own, level in zip(wanted, levels)]
        else:
            levels = [self._level(head, groups, i) for i in range(len(self.strides))]
            for level, class_map in zip(levels, groups[0]):
                offset = offset_of(head.prior_generator)
                size = (class_map.shape[-2], class_map.shape[-1])
                level.valid = valid_positions(level, size, offset, data_samples)
            self._add_features(recorder, levels, groups[0])
            if recorder.model.training:
                try:
                    self._add_labels(recorder, levels)
                except TapError as error:  # a loss without labels does not mind
                    no_labels = str(error)
        return [Predictions.of(self.spec, levels, no_labels=no_labels)]

    def _outputs(self, recorder: Recorder, head: AnyModule) -> list[list[Tensor]]:
        """The head's outputs, each a list with a map for every level; the first are the classes."""
        maps = [capture.tensor for capture in recorder.read([self.output])]
        levels = len(self.strides)
        wanted = [priors * head.cls_out_channels for priors in self.priors]
        classes = maps[:levels]
        if (
            recorder.calls(HEAD) != 1
            or [m.shape[1] if m.dim() == 4 else None for m in classes] != wanted
        ):
            raise TapError(
                f'{self.name} gave {[tuple(m.shape) for m in maps]} in '
                f'{recorder.calls(HEAD)} calls; known are {levels} maps (images, channels, '
                f'height, width) of class logits with {wanted} channels, followed by as many of '
                'each other output. Tap a module path instead, or write a view for this head.'
            )
        groups = [maps[i : i + levels] for i in range(0, len(maps), levels)]
        sizes = [m.shape[-2:] for m in classes]
        return [group for group in groups if [m.shape[-2:] for m in group] == sizes]

    def _level(self, head: AnyModule, groups: list[list[Tensor]], i: int) -> Level:
        priors, class_map = self.priors[i], groups[0][i]
        level = Level(
            logits=by_position(class_map, priors),
            centers=centers_of(head.prior_generator, class_map, self.strides[i]),
            stride=self.strides[i],
        )
        # Centerness and objectness: the one number per prediction beside classes and box.
        if len(groups) > 2 and groups[2][i].shape[1] == priors:
            level.quality = by_position(groups[2][i], priors)[..., 0]
        boxes = box_maps(head, groups, priors)
        if boxes is not None:
            index, kind = boxes
            level.boxes = read_boxes(head, kind, groups[index][i], i, priors)
        return level

    def _add_labels(self, recorder: Recorder, levels: list[Level]) -> None:
        quality = [level.quality for level in levels if level.quality is not None]
        found = self.targets.read(
            recorder,
            [level.logits for level in levels],
            quality if len(quality) == len(levels) else None,
        )
        for level, (labels, weights) in zip(levels, found):
            level.labels, level.label_weights = labels, weights

    def _add_features(
        self, recorder: Recorder, levels: list[Level], class_maps: list[Tensor]
    ) -> None:
        if not self.features:
            return
        maps = [capture.tensor for capture in recorder.read(self.features)]
        sizes = [[tuple(m.shape[-2:]) for m in group] for group in (maps, class_maps)]
        if sizes[0] != sizes[1]:
            raise TapError(
                f'{self.features[0].path!r} was given maps of {sizes[0]}, but the '
                f'class maps of {self.name} are {sizes[1]}: features cannot be brought to rows.'
            )
        for level, features in zip(levels, maps):
            level.features = features.flatten(2).transpose(1, 2)

    def _aligned(self, own: Level, level: Level) -> Level:
        """A teacher's level in the shape of the student's."""
        shapes = tuple(own.logits.shape[:3]), tuple(level.logits.shape[:3])
        if shapes[0][:2] != shapes[1][:2]:
            raise TapError(
                f'at stride {own.stride} the student has {shapes[0]} (images, '
                f'positions, priors), the teacher, {self.name}, {shapes[1]}: their maps must be '
                f'of one size. {_BY_BOXES}'
            )
        return level if shapes[0] == shapes[1] else _best_prior(level)

    def _class_layers(self, head: AnyModule) -> list[str]:
        """Paths of the last classification convolutions: one that all levels share, or one each."""
        width = self.priors[0] * head.cls_out_channels
        found: dict[str, list[str]] = {}
        for name, module in head.named_modules():
            named = 'cls' in name and not name.endswith('.conv')  # which is inside a ConvModule
            weighs = isinstance(getattr(module, 'weight', None), Tensor)
            if named and weighs and getattr(module, 'out_channels', None) == width:
                found.setdefault(re.sub(r'\d+', '*', name), []).append(f'{HEAD}.{name}')
        layers = list(found.values())[-1] if found else []
        if len(layers) not in (1, len(self.strides)):
            raise TapError(
                f'the loss needs features, but {self.name} has no convolution with '
                f"'cls' in its name and {width} outputs, shared by the levels or one for each "
                f'(found: {layers or "none"}). Use a loss without features, such as KDLoss.'
            )
        return layers


def _best_prior(level: Level) -> Level:
    """Reduces the predictions at a position to one: the largest logit of each class; box and
    quality of the one with the best class."""

    def chosen(values: Tensor) -> Tensor:
        best = level.logits.amax(-1).argmax(2, keepdim=True)
        return values.gather(2, best.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1]))

    reduced = Level(
        logits=level.logits.amax(2, keepdim=True), centers=level.centers, stride=level.stride
    )
    if level.quality is not None:
        reduced.quality = chosen(level.quality.unsqueeze(-1)).squeeze(-1)
    if level.boxes is not None:
        reduced.boxes = level.boxes.chosen(chosen)
    return reduced


def _sigmoid(head: AnyModule) -> bool:
    return bool(getattr(head, 'use_sigmoid_cls', getattr(head.loss_cls, 'use_sigmoid', False)))


def _base_anchors(head: AnyModule) -> tuple:
    """Corners of the anchors around the first position of each level, as numbers."""
    anchors = getattr(head.prior_generator, 'base_anchors', None)
    if anchors is None:
        return (None,) * len(head.prior_generator.strides)
    return tuple(
        tuple(tuple(round(float(v), 3) for v in anchor) for anchor in level) for level in anchors
    )
