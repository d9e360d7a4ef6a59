"""How a teacher's detections are read, by the kind of its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..taps import Recorder, TapError
from ..taps.foreign import AnyModule
from ..taps.partial_forward import inference_form, reads_text
from .base import LogitView
from .dense import DenseLogits
from .dense_boxes import box_kind
from .detections_answers import (
    AnswerReader,
    MaskQueryReader,
    Reader,
    answers,
    has_mask_queries,
    has_masks,
    refuse_untested,
)
from .detections_found import Candidates, taint_of
from .predictions import Level
from .query import QueryLogits, corners_in_pixels
from .regions import pyramid, refuse_fused, stage_arguments
from .registry import views
from .roi import RoILogits, activated
from .rotated import refuse_angles

IOU = 0.6  # of the NMS where the teacher's own test_cfg names none


class RowReader(Reader):
    """Reads what the teacher's own view ``cls_logits`` reads.

    Args:
        model: the teacher.
        inner: that view.
    """

    def __init__(self, model: AnyModule, inner: Any) -> None:
        self.inner = inner
        self.spec = inner.specs(model)[-1]
        self.points = inner.teacher_points


class PositionReader(RowReader):
    """A dense head: the predictions at all positions within the images."""

    def __init__(self, model: AnyModule, inner: DenseLogits) -> None:
        super().__init__(model, inner)
        head = model.bbox_head
        if not box_kind(head):
            raise _unknown_boxes(head)
        self.iou = _nms_iou(head)

    def read(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None
    ) -> list[Candidates]:
        (own,) = self.inner.read(recorder, data_samples)
        levels = own.levels
        boxes = torch.cat([_corners(level) for level in levels], dim=1)
        logits = torch.cat([level.logits.flatten(1, 2) for level in levels], dim=1)
        if any(level.valid is not None for level in levels):
            masks = [
                torch.zeros_like(level.logits[..., 0], dtype=torch.bool)
                if level.valid is None
                else ~level.valid.expand(level.logits.shape[:3])
                for level in levels
            ]
            outside = torch.cat([mask.flatten(1) for mask in masks], dim=1)
            boxes = boxes.masked_fill(outside[..., None], torch.nan)
        quality: Sequence[Tensor | None] = [None] * len(boxes)
        known = [level.quality.flatten(1) for level in levels if level.quality is not None]
        if len(known) == len(levels):
            quality = list(torch.cat(known, dim=1))
        return [Candidates(b, z, q, taint_of(z)) for b, z, q in zip(boxes, logits, quality)]


class RegionReader(RowReader):
    """A RoI head: every proposal, regressed for its best class that is shared.

    A cascade gives the boxes of its last stage, with the mean logits of the stages. It runs in the
    precision of the teacher's weights also under autocast: mmcv's NMS and RoIAlign do not know
    every narrower type, and a student of another kind has no need of them.
    """

    def __init__(self, model: AnyModule, inner: RoILogits) -> None:
        super().__init__(model, inner)
        refuse_fused(model)
        heads = model.roi_head.bbox_head
        head = heads[-1] if isinstance(heads, nn.ModuleList) else heads
        if not hasattr(head, 'fc_reg'):
            raise _unknown_boxes(head)
        refuse_untested(model)
        self.iou = _nms_iou(model.roi_head)

    def read(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None
    ) -> list[Candidates]:
        model = recorder.model
        maps = pyramid(recorder, self.inner.pyramid)
        dtype = next(model.roi_head.parameters()).dtype
        with torch.autocast(maps[0].device.type, enabled=False):
            return self._classified(model, tuple(m.to(dtype) for m in maps), data_samples, shared)

    def _classified(
        self,
        model: AnyModule,
        maps: tuple[Tensor, ...],
        data_samples: Any,
        shared: Tensor | None,
    ) -> list[Candidates]:
        from mmdet.structures.bbox import bbox2roi, get_box_tensor

        metas = [sample.metainfo for sample in data_samples]
        taint = taint_of(*maps)  # of NaN features no proposal would be left to tell
        with inference_form(model.rpn_head):
            found = model.rpn_head.predict(maps, data_samples, rescale=False)
        proposals = [p.bboxes for p in found]
        rois, counts = bbox2roi(proposals), [len(boxes) for boxes in proposals]
        if not len(rois):
            nothing = maps[0].new_zeros((0, self.spec.columns))
            return [Candidates(rois[:, 1:], nothing, None, taint) for _ in metas]
        head = model.roi_head
        if stage_arguments(head._bbox_forward, 0):
            rois, logits, deltas = head._refine_roi(maps, rois, metas, counts)
            box_head = head.bbox_head[-1]
        else:
            result = head._bbox_forward(maps, rois)
            box_head, rois = head.bbox_head, rois.split(counts)
            logits, deltas = result['cls_score'].split(counts), result['bbox_pred'].split(counts)
        found = []
        for own, z, delta, meta in zip(rois, logits, deltas, metas):
            z = activated(box_head, z)
            known = z[:, : self.spec.num_classes]
            best = known.argmax(1) if shared is None else shared[known[:, shared].argmax(1)]
            boxes = box_head.regress_by_class(own[:, 1:], best, delta, meta)
            found.append(Candidates(get_box_tensor(boxes), z, None, taint + taint_of(z)))
        return found


class QueryReader(RowReader):
    """A DETR: the queries of its last decoder layer, a set that needs no NMS."""

    iou = None

    def read(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None
    ) -> list[Candidates]:
        scores, boxes = self.inner.outputs_of(recorder)
        logits = scores[-1]
        corners = corners_in_pixels(boxes[-1].float().unsqueeze(2), data_samples).squeeze(2)
        return [Candidates(b, z, None, taint_of(z)) for b, z in zip(corners, logits)]


_READERS: dict[type[LogitView], type[RowReader]] = {
    RoILogits: RegionReader,
    DenseLogits: PositionReader,
    QueryLogits: QueryReader,
}


def reads(model: AnyModule) -> bool:
    """Whether there is a reader for a model of this kind."""
    return not reads_text(model) and (
        has_mask_queries(model) or _inner(model) is not None or answers(model)
    )


def reader_of(model: AnyModule) -> Any:
    """What reads the model's detections. Where its head cannot be read, its final answers are.

    Raises:
        TapError: neither can be.
    """
    refuse_angles(model)
    if has_mask_queries(model):
        return MaskQueryReader(model)
    found = _inner(model)
    if found is None:
        return AnswerReader(model)
    view, reader = found
    try:
        return reader(model, view(model, ()))
    except TapError:
        if not answers(model):
            raise
        return AnswerReader(model)


def mask_reader_of(model: AnyModule) -> Reader:
    """What reads the model's detections with their masks.

    Raises:
        TapError: it has none, or they cannot be read.
    """
    refuse_angles(model)
    if has_mask_queries(model):
        return MaskQueryReader(model, masks=True)
    if not (answers(model) and has_masks(model)):
        raise TapError(
            f'the rows of the student are pixels of masks, and the detections of '
            f'{type(model).__name__} have none. Take a teacher that masks objects, or '
            "student='cls_logits' or 'boxes'."
        )
    return AnswerReader(model, masks=True)


def _inner(model: AnyModule) -> tuple[type[LogitView], type[RowReader]] | None:
    """The view of the model's own rows, and what reads detections by it."""
    for cls in views('cls_logits'):
        for kind, reader in _READERS.items():
            proposes = kind is not RoILogits or hasattr(model, 'rpn_head')
            if issubclass(cls, kind) and proposes and cls.fits(model):
                return cls, reader
    return None


def _corners(level: Level) -> Tensor:
    """Decoded boxes of all positions, (N, P A, 4)."""
    if level.boxes is None:
        raise TapError('the box outputs of the teacher were not found among those of its head.')
    return level.boxes.decode().flatten(1, 2)


def _unknown_boxes(head: AnyModule) -> TapError:
    return TapError(
        f"the view 'detections' does not know how {type(head).__name__} decodes its "
        'boxes. Distil features instead.'
    )


def _nms_iou(head: AnyModule) -> float:
    """The IoU threshold of the model's own NMS."""
    config = head.test_cfg or {}
    return float((config.get('nms') or {}).get('iou_threshold', IOU))
