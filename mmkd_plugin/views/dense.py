"""Class logits of dense heads, which predict at every position of a map.

Served is every ``bbox_head`` that has ``prior_generator`` and ``cls_out_channels``, says by
``loss_cls`` or ``use_sigmoid_cls`` what it does with its logits, and gives one map of them per
level: RetinaNet, GFL, ATSS, FCOS, VFNet, RTMDet, YOLOX, RepPoints, SSD, TOOD and their kin. Not
the heads of two-stage and of query detectors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from ..taps.partial_forward import takes_features
from .assigned_truth import assigned_truth
from .base import LogitView
from .dense_boxes import anchors_of, box_kind, box_maps, read_boxes
from .dense_geometry import by_position, centers_of, offset_of, valid_positions
from .dense_pairs import BY_BOXES, Grid
from .dense_targets import DenseTargets, PackedTargets
from .heard_boxes import box_loss_points, heard_boxes
from .predictions import HeadSpec, Level, Predictions
from .rotated import has_angle_maps
from .scores import logits_of

HEAD = 'bbox_head'
NO_LOSS = '{} computes the loss of its classes without a module, so its labels cannot be heard.'
WITHOUT = "Use a loss and a selection without labels, such as KDLoss with select='score_weighted'."


class DenseLogits(LogitView):
    """Class logits (N, P, A, C) of every level, read from the maps (N, A C, H, W) without a copy.

    As the teacher's view it matches levels by stride. Levels that the student lacks are dropped. A
    teacher with several anchors at a position is reduced for a student with one: for each class the
    largest logit counts (sigmoid heads only), the box is that of the anchor with the best class.
    Positions of equal index belong together, even where one head measures from the corner of a
    cell (GFL, RepPoints) and the other from its centre (FCOS).

    A head whose maps are probabilities (TOOD) is read as the logits that a sigmoid makes them of.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        self.needs = tuple(needs)
        head = model.bbox_head
        self.name = f'{HEAD} ({type(head).__name__})'
        self.columns = self._columns(head)
        self.activated = bool(getattr(getattr(head, 'loss_cls', None), 'activated', False))
        self.grid = Grid.of(head, self.name)
        self.activation = 'sigmoid' if _sigmoid(head) else 'softmax'
        self.output = TapPoint(HEAD)
        self.targets = self._targets(head)
        self._check_needs()
        self.box_losses = box_loss_points(head, HEAD) if 'truth' in self.needs else []
        self.features: list[TapPoint] = []
        if 'features' in self.needs:
            self.features = [TapPoint(p, source='input') for p in self._class_layers(head)]
        self.spec = HeadSpec(
            label=HEAD,
            kind='dense',
            activation=self.activation,
            num_classes=head.num_classes,
            background=self.columns > head.num_classes,
            feature_dim=self._width(model),
            priors=max(self.grid.priors),
        )

    def _columns(self, head: AnyModule) -> int:
        """Columns of the class logits of a prediction."""
        return head.cls_out_channels

    def _targets(self, head: AnyModule) -> DenseTargets | PackedTargets | None:
        """Who hears the labels; None where no module computes the loss of the classes (SSD)."""
        known = isinstance(getattr(head, 'loss_cls', None), nn.Module)
        return DenseTargets(head, HEAD) if known else None

    def _check_needs(self) -> None:
        reason = self.no_truth()
        if 'labels' in self.needs and reason is not None:
            raise TapError(f'{reason} {WITHOUT}')

    def _width(self, model: AnyModule) -> int | None:
        """Channels of the features; None if no loss asks for them."""
        if not self.features:
            return None
        return model.get_submodule(self.features[0].path).in_channels

    @property
    def points(self) -> list[TapPoint]:
        heard = [] if self.targets is None else self.targets.points
        return [self.output, *heard, *self.features, *self.box_losses]

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.output]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, HEAD, None)
        return (
            isinstance(head, nn.Module)
            and _tells_activation(head)
            and isinstance(getattr(head, 'cls_out_channels', None), int)
            and hasattr(getattr(head, 'prior_generator', None), 'num_base_priors')
            and getattr(model, 'roi_head', None) is None
            and takes_features(model, HEAD)
        )

    @classmethod
    def gives_boxes(cls, model: AnyModule) -> bool:
        return box_kind(model.bbox_head) is not None

    def no_truth(self) -> str | None:
        return NO_LOSS.format(self.name) if self.targets is None else self.targets.untold

    # -- pairs -------------------------------------------------------------------------------

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, DenseLogits):
            raise TapError(
                f'the teacher has a dense head ({self.name}), the student has not: '
                f'their rows cannot be matched. {BY_BOXES}'
            )
        self.grid.check(student.grid, self.activation)

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
            matches = self.grid.matches([level.stride for level in wanted])
            levels = [self._level(head, groups, i) for i in matches]
            levels = [self.grid.aligned(own, level) for own, level in zip(wanted, levels)]
        else:
            levels = [self._level(head, groups, i) for i in range(len(self.grid.strides))]
            for level, class_map in zip(levels, groups[0]):
                offset = offset_of(head.prior_generator)
                size = (class_map.shape[-2], class_map.shape[-1])
                level.valid = valid_positions(level, size, offset, data_samples)
            self._add_features(recorder, levels, groups[0])
            if recorder.model.training:
                try:
                    self._add_labels(recorder, levels, groups[0])
                    if 'truth' in self.needs and data_samples is not None:
                        self._add_truth(recorder, levels, data_samples)
                except TapError as error:  # a loss without labels does not mind
                    no_labels = str(error)
        return [Predictions.of(self.spec, levels, no_labels=no_labels)]

    def _outputs(self, recorder: Recorder, head: AnyModule) -> list[list[Tensor]]:
        """The head's outputs, each a list with a map for every level; the first are the classes."""
        maps = [capture.tensor for capture in recorder.read([self.output])]
        levels = len(self.grid.strides)
        wanted = [priors * self.columns for priors in self.grid.priors]
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
        priors, class_map = self.grid.priors[i], groups[0][i]
        level = Level(
            logits=by_position(self._as_logits(class_map), priors),
            centers=centers_of(head.prior_generator, class_map, self.grid.strides[i]),
            stride=self.grid.strides[i],
        )
        # Centerness and objectness: the one number per prediction beside classes and box.
        third = 2 + int(has_angle_maps(head))
        if len(groups) > third and groups[third][i].shape[1] == priors:
            level.quality = by_position(groups[third][i], priors)[..., 0]
        boxes = box_maps(head, [group[i] for group in groups], priors)
        if boxes is not None:
            index, kind = boxes
            level.boxes = read_boxes(head, kind, groups[index][i], i, priors)
            level.anchors = anchors_of(head, groups[index][i], i, priors)
        return level

    def _as_logits(self, class_map: Tensor) -> Tensor:
        """Of probabilities what a sigmoid makes them of, in float32 or wider."""
        if not self.activated:
            return class_map
        return logits_of(class_map)

    def _add_labels(
        self, recorder: Recorder, levels: list[Level], class_maps: list[Tensor]
    ) -> None:
        if self.targets is None:
            raise TapError(NO_LOSS.format(self.name))
        quality = [level.quality for level in levels if level.quality is not None]
        found = self.targets.read(
            recorder,
            [by_position(m, p) for m, p in zip(class_maps, self.grid.priors)],
            quality if len(quality) == len(levels) else None,
        )
        for level, (labels, weights) in zip(levels, found):
            level.labels, level.label_weights = labels, weights

    def _add_truth(self, recorder: Recorder, levels: list[Level], data_samples: Any) -> None:
        boxes = [level.boxes.decode().detach() for level in levels if level.boxes is not None]
        labels = [level.labels for level in levels if level.labels is not None]
        if len(boxes) < len(levels):
            return
        heard = heard_boxes(recorder, self.box_losses, boxes, labels, self.spec.num_classes)
        for level, own, guesses in zip(levels, boxes, heard):
            level.truth = assigned_truth(level, own, data_samples, guesses)

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

    def _class_layers(self, head: AnyModule) -> list[str]:
        """Paths of the last classification convolutions: one that all levels share, or one each."""
        if self.activated:
            raise TapError(
                f'the loss needs features from which one layer makes the class logits; {self.name} '
                'joins two maps to one probability. Use a loss without features, such as KDLoss.'
            )
        width = self.grid.priors[0] * self.columns
        found: dict[str, list[str]] = {}
        for name, module in head.named_modules():
            named = 'cls' in name and not name.endswith('.conv')  # which is inside a ConvModule
            weighs = isinstance(getattr(module, 'weight', None), Tensor)
            if named and weighs and getattr(module, 'out_channels', None) == width:
                found.setdefault(re.sub(r'\d+', '*', name), []).append(f'{HEAD}.{name}')
        layers = list(found.values())[-1] if found else []
        if len(layers) not in (1, len(self.grid.strides)):
            raise TapError(
                f'the loss needs features, but {self.name} has no convolution with '
                f"'cls' in its name and {width} outputs, shared by the levels or one for each "
                f'(found: {layers or "none"}). Use a loss without features, such as KDLoss.'
            )
        return layers


def _sigmoid(head: AnyModule) -> bool:
    told = getattr(head, 'use_sigmoid_cls', None)
    return bool(getattr(head.loss_cls, 'use_sigmoid', False) if told is None else told)


def _tells_activation(head: AnyModule) -> bool:
    """Whether a loss that is a module says it, or, of a head that has none, the head itself."""
    if hasattr(head, 'loss_cls'):
        return isinstance(head.loss_cls, nn.Module)
    return hasattr(head, 'use_sigmoid_cls')
