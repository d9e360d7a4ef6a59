"""Per-pixel class logits of semantic segmentation heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView, other_kind
from .loss_calls import loss_calls
from .predictions import HeadSpec, Level, Predictions, map_rows


@dataclass(frozen=True)
class MapSize:
    """Height and width of the student's map of logits, to which the teacher's is resized."""

    size: torch.Size


class SemanticLogits(LogitView):
    """What ``decode_head.conv_seg`` says for each pixel, (N, H W, 1, C), at the head's own size.

    Serves MMSegmentation's encoder-decoders. Of a cascade of decode heads (OCRNet) it reads the
    last. Labels are those that the head hands to its loss, brought to the size of the logits by
    the nearest pixel; pixels of the ignore index (padding among them) are not valid. A softmax
    head has no background column, all C classes are foreground; a head of one sigmoid output has
    the class 1 of the maps as its only one, so that its label 0 means 1 there, and 1 means 0.

    A teacher's logits of another size are resized to the student's, bilinearly.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        self.needs = tuple(needs)
        self._find(model)
        self.features = TapPoint(self.logits.path, source='input')
        self.points = [self.logits, self.losses]
        if 'features' in self.needs:
            self.points.append(self.features)
        layer = model.get_submodule(self.logits.path)
        self.num_classes = layer.out_channels
        self.spec = HeadSpec(
            label=self.logits.path,
            kind='pixel',
            activation=self.activation,
            num_classes=self.num_classes,
            feature_dim=layer.in_channels,
        )

    def _find(self, model: AnyModule) -> None:
        """Where the logits and the loss are, and how the head reads its labels."""
        path, head = _decode_head(model)
        loss, loss_path = head.loss_decode, f'{path}.loss_decode'
        if isinstance(loss, nn.ModuleList):  # several losses of the same logits and labels
            loss, loss_path = loss[0], f'{loss_path}.0'
        self.logits = TapPoint(f'{path}.conv_seg')
        self.losses = TapPoint(loss_path, source='input')
        single = head.out_channels == 1
        self.activation = 'sigmoid' if single or getattr(loss, 'use_sigmoid', False) else 'softmax'
        self.ignore_index = head.ignore_index
        self.align_corners = head.align_corners
        self.scale = 1.0

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.logits]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = _decode_head(model)[1]
        return isinstance(getattr(head, 'conv_seg', None), nn.Conv2d) and hasattr(
            head, 'loss_decode'
        )

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, SemanticLogits):
            raise other_kind(models, 'classifies pixels')

    def read(
        self, recorder: Recorder, data_samples: Any, student: list[Predictions] | None = None
    ) -> list[Predictions]:
        maps = self._map(recorder.raw(self.logits))
        size = student[0].handover.size if student else maps.shape[-2:]
        if maps.shape[-2:] != size:
            maps = self._resize(maps, size)
        level = Level(map_rows(maps).unsqueeze(2))
        if not student:
            level.labels, level.valid = self._labels(recorder, maps, data_samples)
            if 'features' in self.needs:
                (((features,), _),) = recorder.raw(self.features)
                level.features = map_rows(features)
        return [Predictions.of(self.spec, [level], MapSize(size))]

    def _map(self, calls: list) -> Tensor:
        """The logits (N, C, h, w) of the only call."""
        if len(calls) != 1 or calls[0].dim() != 4:
            raise TapError(
                f'{self.logits.path!r} gave {[tuple(c.shape) for c in calls]} in '
                "this step; the view 'seg_logits' reads heads that call it once, on a map "
                '(N, C, H, W). Tap a module path instead.'
            )
        return calls[0]

    def _resize(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        return nnf.interpolate(
            maps, size=tuple(size), mode='bilinear', align_corners=self.align_corners
        )

    def _labels(
        self, recorder: Recorder, logits: Tensor, data_samples: Any
    ) -> tuple[Tensor, Tensor]:
        """Labels and their validity, each (N, h w, 1), at the size of the logits (N, C, h, w)."""
        calls = loss_calls(recorder, self.losses)
        if not calls:
            raise TapError(
                f'{self.losses.path!r} was not called in this step, so that there '
                'are no labels to read.'
            )
        maps = self._label_map(calls[0].target, len(logits), data_samples)
        if maps.shape[-2:] != logits.shape[-2:]:
            # Exact for whole numbers below 2**24; of each cell the pixel in its middle.
            maps = nnf.interpolate(
                maps[:, None].float(), size=logits.shape[-2:], mode='nearest-exact'
            )
        labels = maps.long().flatten(1).unsqueeze(-1)
        ignore = calls[0].others.get('ignore_index', self.ignore_index)
        classes = max(self.num_classes, 2)  # one sigmoid output tells two classes apart
        valid = (labels >= 0) & (labels < classes)
        if ignore is not None:
            valid &= labels != ignore
        if self.num_classes == 1:
            labels = 1 - labels
        return torch.where(valid, labels, 0), valid

    def _label_map(self, target: Any, images: int, data_samples: Any) -> Tensor:
        """Labels (N, H, W) as the loss got them: a map, or one row of all pixels."""
        if isinstance(target, Tensor) and target.dim() == 3:
            return target
        sizes = {tuple(sample.batch_input_shape) for sample in data_samples}
        if isinstance(target, Tensor) and target.dim() == 1 and len(sizes) == 1:
            (size,) = sizes
            height, width = (int(side * self.scale) for side in size)
            if len(target) == images * height * width:
                return target.reshape(images, height, width)
        shape = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise TapError(
            f'{self.losses.path!r} got targets {shape}; the view reads labels '
            '(N, H, W) of whole numbers.'
        )


class PanopticSemanticLogits(SemanticLogits):
    """What the semantic head of Panoptic FPN says for each pixel.

    Its columns are the stuff classes, and last the one that stands for all things: not the classes
    of the box head, which is why this view is no ``cls_logits``.
    """

    def _find(self, model: AnyModule) -> None:
        head = model.semantic_head
        self.logits = TapPoint('semantic_head.conv_logits')
        self.losses = TapPoint('semantic_head.loss_seg', source='input')
        self.activation = 'sigmoid' if getattr(head.loss_seg, 'use_sigmoid', False) else 'softmax'
        self.ignore_index = getattr(head.loss_seg, 'ignore_index', None)
        self.align_corners = False
        self.scale = head.seg_rescale_factor

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, 'semantic_head', None)
        return isinstance(getattr(head, 'conv_logits', None), nn.Conv2d) and hasattr(
            head, 'loss_seg'
        )


def _decode_head(model: AnyModule) -> tuple[str, AnyModule]:
    """Path and module of the decode head; of a cascade the last; None where there is none."""
    head = getattr(model, 'decode_head', None)
    if isinstance(head, nn.ModuleList) and len(head):
        return f'decode_head.{len(head) - 1}', head[-1]
    return 'decode_head', head
