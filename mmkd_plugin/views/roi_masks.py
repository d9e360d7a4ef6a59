"""Mask logits of RoI heads: for each pixel, how sure the head is that the object covers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ..class_map import fit_class_map
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView
from .grid_masks import mask_rows, of_pixels
from .predictions import HeadSpec, Level, MaskGrid, PairContext, Predictions
from .regions import (
    Regions,
    RegionView,
    images_of,
    last_loss_call,
    pools_rois,
    refuse_fused,
    rois_of,
    stage_arguments,
)


@dataclass(frozen=True)
class MaskRegions(Regions):
    """Regions with masks.

    Attributes:
        classes: the student's class (R,) of each, whose mask counts.
        size: height and width of the student's masks.
        agnostic: whether the student has one mask for all classes.
    """

    classes: Tensor
    size: tuple[int, int]
    agnostic: bool


class RoIMasks(RegionView):
    """Rows (1, R h w, 1, 1): the pixels of the masks of the student's R positive RoIs.

    Of the classes' masks, that of the RoI's own class counts, in the teacher as in the student. A
    pixel is one sigmoid row; its label is 0 on the object and 1, background, beside it. The
    teacher's mask head runs on the same RoIs; where its masks have another size they are resized
    bilinearly, which is meant: both cover the same box. Under a class_map the teacher's mask is
    that of its own class; RoIs of a class that it does not know are left out. A class-agnostic
    student's loss is told no classes: all of its RoIs stay.
    """

    unit = 'masks'
    of_classes = False  # a row is the mask of one class
    of_masks = True

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        head = model.roi_head
        extractor = 'bbox_roi_extractor' if _shares(head) else 'mask_roi_extractor'
        super().__init__(model, needs, 'mask_head', extractor, 'loss_mask', 'conv_logits')
        self.agnostic = [model.get_submodule(path).class_agnostic for path in self.heads]
        # A standard head with a shared extractor masks the positives among the pooled box features.
        self.from_boxes = _shares(head) and not stage_arguments(head._mask_forward, 0)
        self.box_output = TapPoint('roi_head.bbox_head')
        self.box_loss = TapPoint('roi_head.bbox_head.loss_cls', source='input')
        if self.from_boxes:
            self.points += [self.box_output, self.box_loss]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, 'roi_head', None)
        if not isinstance(head, nn.Module) or not pools_rois(getattr(head, '_mask_forward', None)):
            return False
        masks = getattr(head, 'mask_head', None)
        if not isinstance(masks, nn.Module):
            return False
        return all(
            isinstance(getattr(mask, name, None), nn.Module)
            for mask in (masks if isinstance(masks, nn.ModuleList) else [masks])
            for name in ('conv_logits', 'loss_mask')
        )

    def _spec(self, head: AnyModule, path: str) -> HeadSpec:
        width = head.conv_logits.in_channels
        return HeadSpec(path, 'pixel', 'sigmoid', num_classes=1, feature_dim=width)

    def check_pair(
        self,
        student: LogitView,
        models: tuple[AnyModule, AnyModule],
        class_map: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(student, RoIMasks):
            raise TapError(
                f'the teacher ({type(models[1]).__name__}) can mask RoIs, but the student '
                f'({type(models[0]).__name__}) samples none.'
            )
        refuse_fused(models[1])
        for own, theirs in zip(student.heads, self.heads):
            s, t = models[0].get_submodule(own), models[1].get_submodule(theirs)
            if class_map is not None and not s.class_agnostic:
                # What an agnostic head's config says of a number of classes is never read.
                known = max(class_map) + 1 if t.class_agnostic else t.num_classes
                fit_class_map(class_map, s.num_classes, known)
            other = s.num_classes != t.num_classes and class_map is None
            if not t.class_agnostic and (s.class_agnostic or other):
                raise TapError(
                    f'the teacher {theirs!r} has {_masks(t)} and the student '
                    f'{own!r} has {_masks(s)}: which of them belong together is not known. Take a '
                    "teacher of the same classes, say which they share (teacher's class_map), or "
                    'take one whose masks are class-agnostic.'
                )

    # -- the student's own ---------------------------------------------------------------------

    def _own(self, recorder: Recorder, stage: int, outputs: list) -> Predictions:
        # Later stages of HTC call the heads of earlier ones again, for their features.
        masks = _first(outputs[0])
        count, _, height, width = masks.shape
        call = last_loss_call(recorder, self.losses[stage], count)
        if call is None and count:
            raise TapError(
                f'{self.losses[stage].path!r} was not given the {count} masks of its '
                'head in this step, so their classes are not known.'
            )
        if call is None:  # a head does not call its loss for no masks
            truth = masks.new_zeros((0, height, width))
            classes = truth.new_zeros(0, dtype=torch.long)
        else:
            # The third argument of a mask loss is the class, though losses call it a weight.
            assert call.weight is not None
            masks, truth, classes = call.pred, call.target, call.weight
        if self.from_boxes:
            rois = self._positive_boxes(recorder, count)
        else:
            rois = rois_of(recorder, self.rois[stage], count, last=True)
        level = Level(
            logits=mask_rows(_own_class(masks, classes)),
            labels=(truth.detach() < 0.5).long().reshape(1, -1, 1),
            images=rois[:, 0].long().repeat_interleave(height * width)[None],
            grid=MaskGrid(rois, (height, width), None if self.agnostic[stage] else classes),
        )
        if self.features:
            args, _ = recorder.raw(self.features[stage])[-1]
            level.features = args[0].permute(0, 2, 3, 1).reshape(1, -1, args[0].shape[1])
        images = images_of(recorder, self.rois[0])
        regions = MaskRegions(rois, images, classes, (height, width), self.agnostic[stage])
        return Predictions.of(self.stages[stage], [level], regions)

    def _positive_boxes(self, recorder: Recorder, count: int) -> Tensor:
        """RoIs of the ``count`` positives among those of the boxes, found without waiting."""
        outputs = recorder.raw(self.box_output)
        total = len(outputs[-1][0])
        rois = rois_of(recorder, self.rois[0], total)
        call = last_loss_call(recorder, self.box_loss, total)
        if call is None:
            return rois[:0]
        background = call.target >= recorder.model.roi_head.bbox_head.num_classes
        return rois[background.long().argsort(stable=True)[:count]]

    def _nothing(self, stage: int, before: Predictions) -> Predictions:
        (last,) = before.levels
        assert last.labels is not None and last.images is not None
        level = Level(
            logits=last.logits[:, :0],
            labels=last.labels[:, :0],
            images=last.images[:, :0],
            grid=MaskGrid(before.handover.rois[:0], before.handover.size),
        )
        if last.features is not None:
            level.features = last.features[:, :0]
        regions = replace(
            before.handover,
            rois=before.handover.rois[:0],
            classes=before.handover.classes[:0],
            agnostic=self.agnostic[stage],
        )
        return Predictions.of(self.stages[stage], [level], regions)

    # -- the teacher ---------------------------------------------------------------------------

    def _teach(
        self,
        model: AnyModule,
        stage: int,
        maps: tuple[Tensor, ...],
        rois: Tensor,
        student: MaskRegions,
        pair: PairContext,
    ) -> Level:
        classes, size, known = student.classes, student.size, None
        if pair.class_map is not None and not student.agnostic:
            classes = pair.class_map[classes]
            known, classes = classes >= 0, classes.clamp(min=0)
        masks = maps[0].new_zeros((0, *size))
        if len(rois):
            forward = model.roi_head._mask_forward
            result = forward(*stage_arguments(forward, stage), maps, rois)
            masks = _own_class(_first(result['mask_preds']), classes)
        if masks.shape[1:] != size:
            masks = nnf.interpolate(
                masks[:, None].float(), size=size, mode='bilinear', align_corners=False
            )[:, 0]
        valid = None if known is None else of_pixels(known, size)
        return Level(logits=mask_rows(masks), valid=valid)


def _shares(roi_head: AnyModule) -> bool:
    """One module under two names is listed under the first, ``bbox_roi_extractor``."""
    return getattr(roi_head, 'share_roi_extractor', False)


def _masks(head: AnyModule) -> str:
    return 'one mask for all classes' if head.class_agnostic else f'{head.num_classes} masks'


def _first(output: Any) -> Tensor:
    """The masks; some heads return their features, too."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _own_class(masks: Tensor, classes: Tensor) -> Tensor:
    """(R, h, w): of masks (R, K, h, w) those of the classes (R,); K = 1 is for all classes."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    index = classes.reshape(-1, 1, 1, 1).expand(-1, 1, *masks.shape[2:])
    return masks.gather(1, index)[:, 0]
