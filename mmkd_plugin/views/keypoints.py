"""Where a pose estimator's head sees each keypoint: heat maps, or distributions of coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView, only_call, other_kind
from .predictions import HeadSpec, Level, Predictions

# The two layers that give a head's distributions over x and y (RTMPose, SimCC).
_COORDINATES = (('cls_x', 'cls_y'), ('mlp_head_x', 'mlp_head_y'))
_HEATMAP_SCALE = 10.0
_NO_LABELS = 'Its columns are places, and the view gives no label of a place.'


@dataclass(frozen=True)
class MapSize:
    """Height and width of the student's heat maps, to which the teacher's are resized."""

    size: torch.Size


@dataclass(frozen=True)
class KeypointHead:
    """What a head says of each keypoint.

    Attributes:
        points: the modules whose outputs it is: one of heat maps, or those of x and of y.
        columns: places that each of them tells apart.
        keypoints: K.
        scale: what the outputs are multiplied by before their softmax.
        maps: whether they are heat maps.
        weighted: whether the head's own loss weighs the keypoints of each image.
    """

    points: tuple[TapPoint, ...]
    columns: tuple[int, ...]
    keypoints: int
    scale: float
    maps: bool
    weighted: bool


def predicts_keypoints(model: AnyModule) -> bool:
    """Whether a model with a backbone and one ``head`` is a pose estimator, and no classifier."""
    head = getattr(model, 'head', None)
    return isinstance(head, nn.Module) and (
        callable(getattr(head, 'decode', None)) or hasattr(head, 'num_keypoints')
    )


class KeypointLogits(LogitView):
    r"""The place of each keypoint as a distribution, rows (N, K, 1, places), under a softmax.

    Serves MMPose's top-down heads. Heads of coordinates (``RTMCCHead``, ``SimCCHead``) have two,
    over the bins of x and of y; their softmax is that of the head's own loss, ``beta`` included:
    *SimCC: a Simple Coordinate Classification Perspective for Human Pose Estimation* (2022) and
    *RTMPose* (2023). KD on them is the plain sum over the bins,

    .. math:: \mathrm{KL} = \sum_i p^T_i \log \frac{p^T_i}{p^S_i},
        \qquad p = \mathrm{softmax}(\beta x)

    as DWPose (*Effective Whole-body Pose Estimation with Two-stages Distillation*, 2023) does it.
    Heat maps (``HeatmapHead``, trained by a squared error on values from 0 to 1) are read as one
    distribution over all pixels, likewise. Their :math:`\beta` is 10, which RTMPose gives to values
    of the same range; for maps that number is *recommended*, without a published one behind it.

    Keypoints that the student's own loss gives the weight 0 do not count. A teacher's heat maps of
    another size are resized to the student's, bilinearly.
    """

    of_classes = False

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        self.head = read_keypoint_head(model)
        self.points = list(self.head.points)
        self._specs = [
            HeadSpec(point.path, 'keypoint', 'softmax', columns)
            for point, columns in zip(self.head.points, self.head.columns)
        ]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        return predicts_keypoints(model)

    def specs(self, model: nn.Module) -> list[HeadSpec]:
        return self._specs

    def compares_classes(self, model: nn.Module) -> bool:
        return False

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, KeypointLogits) or student.head.maps != self.head.maps:
            raise other_kind(models, 'has heat maps' if self.head.maps else 'has coordinates')
        own, theirs = student.head, self.head
        if own.keypoints != theirs.keypoints:
            raise TapError(
                f'the student has {own.keypoints} keypoints and the teacher {theirs.keypoints} '
                '(out_channels of their heads). Take a teacher of the same keypoints, or distil '
                'features, such as the backbone.'
            )
        if not own.maps and own.columns != theirs.columns:
            raise TapError(
                f'the student tells {own.columns} places in x and y apart, the teacher '
                f'{theirs.columns} (input_size times simcc_split_ratio of their heads). Take a '
                'teacher with the same, or distil features, such as the backbone.'
            )

    def read(
        self, recorder: Recorder, data_samples: Any, student: list[Predictions] | None = None
    ) -> list[Predictions]:
        outputs = [only_call(recorder, point, 'keypoints', 'heads') for point in self.points]
        for point, output in zip(self.points, outputs):
            if output.dim() != (4 if self.head.maps else 3):
                raise TapError(f'{point.path!r} gave {tuple(output.shape)}, no row per keypoint.')
        handover = None
        if self.head.maps:
            size = student[0].handover.size if student else outputs[0].shape[-2:]
            outputs, handover = [_resized(outputs[0], size).flatten(2)], MapSize(size)
        weights = None if student else self._weights(data_samples, outputs[0])
        found = []
        for spec, rows in zip(self._specs, outputs):
            level = Level(rows.unsqueeze(2) * self.head.scale, label_weights=weights)
            found.append(Predictions.of(spec, [level], handover, no_labels=_NO_LABELS))
        return found

    def _weights(self, data_samples: Any, rows: Tensor) -> Tensor | None:
        """How much each keypoint of the batch counts for the student, (N, K, 1)."""
        if not self.head.weighted or not isinstance(data_samples, (list, tuple)):
            return None
        weights = torch.cat([x.gt_instance_labels.keypoint_weights for x in data_samples])
        if weights.shape != rows.shape[:2]:
            raise TapError(
                f'the keypoint_weights of this batch are {tuple(weights.shape)}, its keypoints '
                f'{tuple(rows.shape[:2])} (images, keypoints): no weight belongs to each of them.'
            )
        return weights.to(rows.device).unsqueeze(2)


def read_keypoint_head(model: AnyModule) -> KeypointHead:
    """Reads ``model.head``.

    Raises:
        TapError: a head that does not say for each keypoint of one person where it is.
    """
    head, name = model.head, type(model.head).__name__
    loss = getattr(head, 'loss_module', None)
    weighted = bool(getattr(loss, 'use_target_weight', False))
    for names in _COORDINATES:
        layers = [getattr(head, x, None) for x in names]
        if all(isinstance(layer, nn.Linear) for layer in layers):
            points = tuple(TapPoint(f'head.{x}') for x in names)
            columns = tuple(layer.out_features for layer in layers if layer is not None)
            scale = float(getattr(loss, 'beta', 1.0))
            return KeypointHead(points, columns, head.out_channels, scale, False, weighted)
    _check_maps(head, name)
    width, height = head.decoder.heatmap_size
    points = (TapPoint('head.final_layer'),)
    columns = (int(width) * int(height),)
    return KeypointHead(points, columns, head.out_channels, _HEATMAP_SCALE, True, weighted)


def _check_maps(head: AnyModule, name: str) -> None:
    """Refuses whatever is no head of one heat map for each keypoint of one person."""
    codec = getattr(head, 'decoder', None)
    layer = getattr(head, 'final_layer', None)
    others = [x for x in ('num_keypoints', 'depth_size') if hasattr(head, x)]
    if others or not isinstance(layer, nn.Module):
        raise TapError(
            f"the view 'keypoints' reads heat maps (HeatmapHead) and distributions of coordinates "
            f"(RTMCCHead, SimCCHead); the model's head, {name}, has neither. Distil features, such "
            'as the backbone.'
        )
    if codec is None or not hasattr(codec, 'heatmap_size'):
        raise TapError(
            f'{name} has no codec that tells the size of its heat maps. Give it one: '
            'head=dict(..., decoder=dict(type=..., heatmap_size=...)).'
        )
    if getattr(codec, 'heatmap_type', 'gaussian') == 'combined':
        raise TapError(
            f'{name} predicts offsets beside its heat maps (heatmap_type={codec.heatmap_type!r}). '
            'Distil features, such as the backbone.'
        )


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N, K, h, w) at another size."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return nnf.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=False)
