"""Mask logits of heads that predict the layers of a small network for each object (CondInst)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ..class_map import fit_class_map
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView, only_call, other_kind
from .grid_masks import (
    MASKS,
    known_rows,
    mask_level,
    mask_rows,
    of_pixels,
    refuse_features,
    whole_images,
)
from .loss_calls import loss_calls
from .predictions import ALIKE, HeadSpec, Level, PairContext, Predictions

_PROBES = 64  # pixels by which a mask is recognised among all of its image


@dataclass(frozen=True)
class Positions:
    """The positions whose masks a student trains on, handed over image by image.

    Attributes:
        positives: ``points``, ``strides``, ``pos_inds`` and ``labels`` of an image's positions.
        sizes: height and width of the student's masks.
    """

    positives: list[InstanceData]
    sizes: list[tuple[int, int]]


class DynamicMasks(LogitView):
    """The masks that CondInst's student trains on, (1, masks * H * W, 1, 1), a level per image.

    Label 0 is inside of the object, 1 outside of it; padding is not valid. The teacher makes
    masks by the kernels that it predicts at the very same positions, with its own mask features;
    they are resized bilinearly if theirs are of another size. How many masks there are depends on
    the images: the step waits for the device, as CondInst's own targets do.

    The student trains on some of its positive positions only (``max_masks_to_train``,
    ``topk_masks_per_img``). Which ones is told by the values of their masks at a few pixels; a mask
    that is none of those that the head made is not valid. Neither, under a class_map, is that of an
    object whose class the teacher does not know.
    """

    of_classes = False
    of_masks = True

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        refuse_features(needs)
        self.strides = tuple(model.bbox_head.strides)
        self.num_classes = model.bbox_head.num_classes
        self.masks = TapPoint('mask_head')
        self.positives = TapPoint('mask_head', source='input')
        self.losses = TapPoint('mask_head.loss_mask', source='input')
        self.points = [self.masks, self.positives, self.losses]
        self.kernels = TapPoint('bbox_head')
        self.pyramid = TapPoint('neck')

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.pyramid, self.kernels]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, 'mask_head', None)
        return (
            hasattr(head, 'parse_dynamic_params')
            and hasattr(head, 'mask_feature_head')
            and hasattr(model, 'neck')
            and hasattr(getattr(model, 'bbox_head', None), 'get_positive_infos')
        )

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return [MASKS]

    def check_pair(
        self,
        student: LogitView,
        models: tuple[AnyModule, AnyModule],
        class_map: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(student, DynamicMasks):
            raise other_kind(models, 'makes masks by dynamic kernels')
        if student.strides != self.strides:
            raise TapError(
                f'the strides of the student are {list(student.strides)}, those of '
                f'the teacher {list(self.strides)}: their positions do not correspond. Take a '
                'teacher of the same strides, or distil features.'
            )
        if class_map is not None:
            fit_class_map(class_map, student.num_classes, self.num_classes)

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if student:
            return [Predictions.of(MASKS, self._at(recorder, student[0].handover, pair))]
        return [Predictions.of(MASKS, *self._own(recorder, data_samples))]

    def _own(self, recorder: Recorder, data_samples: Any) -> tuple[list[Level], Positions]:
        maps = only_call(recorder, self.masks, 'mask_logits', 'models')[0]
        ((args, kwargs),) = recorder.raw(self.positives)
        infos = kwargs['positive_infos'] if 'positive_infos' in kwargs else args[1]
        losses = iter(loss_calls(recorder, self.losses))
        levels, kept, sizes = [], [], []
        for i, (masks, info) in enumerate(zip(maps, infos)):
            found = None
            if not len(info.pos_inds):  # the head calls no loss, and its masks have no graph
                masks = target = info.param_preds.reshape(0, *masks.shape[-2:])
                positions = info.pos_inds
            else:
                call = next(losses, None)
                if call is None or call.pred.shape[1:] != masks.shape[1:]:
                    raise TapError(
                        f'{self.losses.path!r} did not get the masks of image {i}, '
                        f'which have the shape {tuple(masks.shape)}.'
                    )
                positions, found = _recognise(call.pred, masks)
                masks, target = call.pred, call.target
            images = info.pos_inds.new_full((len(masks),), i)
            level = mask_level(masks, target, images, data_samples)
            if found is not None and level.valid is not None:
                level.valid = level.valid & of_pixels(found, masks.shape[-2:])
            levels.append(level)
            owners = info.pos_assigned_gt_inds[positions]
            classes = data_samples[i].gt_instances.labels[owners]
            level.grid = whole_images(images, masks.shape[-2:], classes, data_samples)
            kept.append(
                InstanceData(
                    points=info.points[positions],
                    strides=info.strides[positions],
                    pos_inds=info.pos_inds[positions],
                    labels=classes,
                )
            )
            sizes.append(tuple(masks.shape[-2:]))
        return levels, Positions(kept, sizes)

    def _at(self, recorder: Recorder, student: Positions, pair: PairContext) -> list[Level]:
        """The teacher's masks at the student's positions."""
        (pyramid,), (outputs,) = recorder.raw(self.pyramid), recorder.raw(self.kernels)
        head = recorder.model.mask_head
        # Positions are counted as the box head counts them: level by level, row by row.
        kernels = torch.cat([x.flatten(2).transpose(1, 2) for x in outputs[-1]], dim=1)
        levels = []
        features = head.mask_feature_head(tuple(pyramid))
        for own, params, info, size in zip(features, kernels, student.positives, student.sizes):
            positives = InstanceData(
                points=info.points, strides=info.strides, param_preds=params[info.pos_inds]
            )
            (masks,) = head.forward_single(own, positives)
            levels.append(
                Level(
                    mask_rows(masks.flatten(0, -3), size),
                    valid=known_rows(info.labels, pair.class_map, size),
                )
            )
        return levels


def _recognise(some: Tensor, masks: Tensor) -> tuple[Tensor, Tensor | None]:
    """Which of ``masks`` (P, H, W) each of ``some`` (K, H, W) is.

    Returns:
        Indices (K,), and whether there is such a mask (K,); None if all are known to be there.
    """
    if some is masks:
        return torch.arange(len(masks), device=masks.device), None
    some, masks = (x.detach().flatten(1) for x in (some, masks))
    step = max(masks.shape[1] // _PROBES, 1)
    same = (some[:, None, ::step] == masks[None, :, ::step]).all(dim=-1)
    return same.float().argmax(dim=1), same.any(dim=1)
