"""A teacher of any kind speaks through its boxes: for pairs whose heads have no rows in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from ..taps.partial_forward import inference_form
from .assignment import assign, log_odds
from .base import LogitView
from .dense import DenseLogits
from .dense_boxes import box_kind
from .predictions import ALIKE, HeadSpec, Level, PairContext, Predictions
from .regions import pyramid, refuse_fused, stage_arguments
from .registry import views
from .roi import RoILogits

PER_IMAGE = 100  # detections that an image keeps
CANDIDATES = 1000  # boxes of an image, by score, that enter the NMS
IOU = 0.6  # of the NMS where the teacher's own test_cfg names none


class ImageBoxes(NamedTuple):
    """Boxes of one image, as the teacher sees it.

    Attributes:
        boxes: corners (M, 4) in pixels of the batch's images.
        logits: (M, C); sigmoid logits (M, K) of the teacher's classes once they are detections.
        quality: logits (M,) of centerness or objectness, or None.
        taint: a scalar, 0, or NaN where the teacher saw one.
    """

    boxes: Tensor
    logits: Tensor
    quality: Tensor | None
    taint: Tensor


class Detections(LogitView):
    """The teacher's decoded predictions, assigned to the positions of a dense student.

    Whatever the teacher's head, it predicts boxes with a vector of class logits each: a RoI head
    for its own proposals (a cascade after its last stage, with the mean logits of the stages), a
    dense head at its own positions. The best 100 of an image, after an NMS within each class, are
    its detections; under a class_map only classes that the student shares count there. A student's
    prediction is taught by one of those that contain the centre of its position, namely that with
    the highest IoU with the box which the student itself predicts there; it is not valid where no
    detection contains the centre.

    The student's classes must be sigmoids. A sigmoid teacher's logits are taken as they are; those
    of a softmax teacher become the log odds of each class, which is exact.

    A box with a NaN is no detection. A NaN in the teacher's features or class logits makes all
    rows of the image NaN, so that the step's finite check reports it.

    Only a teacher can be viewed so. NMS and proposals give as many boxes as they find: the step
    waits for the device here, as it does for a two-stage student's own proposals.
    The rows are a tensor of the size of the student's logits.
    """

    teacher_only = True
    default_select = 'positive'  # near an object most boxed positions are the student's background

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        reader = _reader(model)
        assert reader is not None  # it fits
        self.inner: Any = reader(model, ())  # a RoILogits or a DenseLogits
        self.spec = self.inner.specs(model)[-1]
        self.by_regions = isinstance(self.inner, RoILogits)
        self.iou = _check_boxes(model, self.by_regions)

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        return _reader(model) is not None

    @property
    def points(self) -> list[TapPoint]:
        raise self._no_student()

    def _no_student(self) -> TapError:
        return TapError(
            "the view 'detections' is a teacher's; a student's rows come from its "
            "own head: student='cls_logits', teacher='detections'."
        )

    @property
    def teacher_points(self) -> list[TapPoint]:
        return self.inner.teacher_points

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if isinstance(student, Detections):
            raise self._no_student()
        spec, name = student.specs(models[0])[0], type(models[0]).__name__
        if not isinstance(student, DenseLogits):
            raise TapError(
                f"'detections' are assigned to the positions of a dense head; the "
                f'student ({name}, {spec.label!r}) has rows of the kind {spec.kind!r}.'
            )
        if not student.of_classes:
            raise TapError(
                f'detections carry classes, and the rows of the student ({name}, '
                f"{spec.label!r}) are something else. Take student='cls_logits'."
            )
        if spec.activation != 'sigmoid' or spec.background:
            raise TapError(
                f'the student ({name}, {spec.label!r}) has a softmax over classes '
                'and background; detections tell how sure each class is, which is a sigmoid. Take '
                'a student whose loss_cls has use_sigmoid=True.'
            )
        if self.by_regions:
            refuse_fused(models[1])

    def check_loss(self, loss: AnyModule) -> None:
        if loss.compares_rows:
            raise TapError(
                f"'detections' gives all positions in a box the same logits, and "
                f'{type(loss).__name__} would contrast copies of one row. Take KDLoss.'
            )

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if data_samples is None:
            raise TapError(
                "'detections' need the sizes of the images, which this step did not "
                'tell: call the student with data_samples.'
            )
        with torch.no_grad():
            shared = None if pair.columns is None else pair.columns[1]
            found = self.detect(recorder, data_samples, shared)
            assert student is not None  # a student's view has no points to listen at
            return [self._assigned(own, found) for own in student]

    def detect(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None = None
    ) -> list[ImageBoxes]:
        """The detections of each image, the best first; a box is ranked by the ``shared`` classes
        of the teacher, or all of them.
        """
        if self.by_regions:
            found = self._from_regions(recorder, data_samples, shared)
        else:
            found = self._from_maps(recorder, data_samples)
        sizes = [sample.img_shape[:2] for sample in data_samples]
        return [self._best(one, size, shared) for one, size in zip(found, sizes)]

    # -- what the teacher's head says ----------------------------------------------------------

    def _from_regions(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None
    ) -> list[ImageBoxes]:
        """Every proposal, regressed for its best class that is shared.

        Runs in the precision of the teacher's weights also under autocast: mmcv's NMS and RoIAlign
        do not know every narrower type, and a dense student has no need of them.
        """
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
    ) -> list[ImageBoxes]:
        from mmdet.structures.bbox import bbox2roi, get_box_tensor

        metas = [sample.metainfo for sample in data_samples]
        taint = _taint(*maps)  # of NaN features no proposal would be left to tell
        with inference_form(model.rpn_head):
            found = model.rpn_head.predict(maps, data_samples, rescale=False)
        proposals = [p.bboxes for p in found]
        rois, counts = bbox2roi(proposals), [len(boxes) for boxes in proposals]
        if not len(rois):
            nothing = maps[0].new_zeros((0, self.spec.columns))
            return [ImageBoxes(rois[:, 1:], nothing, None, taint) for _ in metas]
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
            known = z[:, : self.spec.num_classes]
            best = known.argmax(1) if shared is None else shared[known[:, shared].argmax(1)]
            boxes = box_head.regress_by_class(own[:, 1:], best, delta, meta)
            found.append(ImageBoxes(get_box_tensor(boxes), z, None, taint + _taint(z)))
        return found

    def _from_maps(self, recorder: Recorder, data_samples: Any) -> list[ImageBoxes]:
        """The predictions at all positions within the images."""
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
        return [ImageBoxes(b, z, q, _taint(z)) for b, z, q in zip(boxes, logits, quality)]

    def _best(self, found: ImageBoxes, size: tuple[int, int], shared: Tensor | None) -> ImageBoxes:
        """Drops what is no box, and of boxes of a class that overlap all but the best."""
        from mmcv.ops import batched_nms

        boxes, logits, quality, taint = found
        boxes, logits = boxes.float(), logits.float()
        if self.spec.activation == 'softmax':
            logits = log_odds(logits)
        logits = logits[:, : self.spec.num_classes]
        limit = boxes.new_tensor([size[1], size[0]] * 2)
        clipped = boxes.clamp(min=0).minimum(limit)
        usable = (clipped[:, 2:] > clipped[:, :2]).all(1)
        usable &= boxes.isfinite().all(1) & logits.isfinite().all(1)
        boxes, logits = clipped[usable], logits[usable]
        if not len(boxes):
            return ImageBoxes(boxes, logits, None, taint)
        scores, labels = (logits if shared is None else logits[:, shared]).sigmoid().max(1)
        if quality is not None:
            scores = scores * quality[usable].float().sigmoid()
        scores, order = scores.topk(min(CANDIDATES, len(scores)))
        boxes, logits, labels = boxes[order], logits[order], labels[order]
        nms = dict(type='nms', iou_threshold=self.iou)
        _, kept = batched_nms(boxes, scores, labels, nms)
        kept = kept[:PER_IMAGE]
        return ImageBoxes(boxes[kept], logits[kept], None, taint)

    # -- the student's positions ---------------------------------------------------------------

    def _assigned(self, own: Predictions, found: list[ImageBoxes]) -> Predictions:
        label = f'detections of {self.spec.label}'
        spec = HeadSpec(label, own.kind, 'sigmoid', self.spec.num_classes)
        return Predictions.of(spec, [self._level(level, found) for level in own.levels])

    def _level(self, own: Level, found: list[ImageBoxes]) -> Level:
        if own.boxes is None or own.centers is None:
            raise TapError(
                "the student's head tells no boxes that could be compared with the teacher's. Let "
                "both heads be compared directly (teacher='cls_logits'), or distil features."
            )
        boxes = own.boxes.decode().detach().float()
        logits, contained = [], []
        for image, detections in zip(boxes, found):
            nothing = detections.logits.new_zeros((1, self.spec.num_classes))
            rows = torch.cat([detections.logits, nothing]) + detections.taint
            index = assign(own.centers, image, detections.boxes)
            logits.append(rows[index])
            contained.append(index < len(detections.boxes))
        valid = torch.stack(contained)
        if own.valid is not None:
            valid &= own.valid
        return Level(
            logits=torch.stack(logits), valid=valid, centers=own.centers, stride=own.stride
        )


def _corners(level: Level) -> Tensor:
    """Decoded boxes of all positions, (N, P A, 4)."""
    assert level.boxes is not None  # _check_boxes
    return level.boxes.decode().flatten(1, 2)


def _taint(*tensors: Tensor) -> Tensor:
    """0, or NaN if there is a NaN or an infinity among the numbers."""
    return torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).sum() * 0.0


def _reader(model: AnyModule) -> type[LogitView] | None:
    """The view that reads boxes and class logits of the model's own positions or regions."""
    for cls in views('cls_logits'):
        proposes = not issubclass(cls, RoILogits) or hasattr(model, 'rpn_head')
        if proposes and issubclass(cls, (RoILogits, DenseLogits)) and cls.fits(model):
            return cls
    return None


def _check_boxes(model: AnyModule, by_regions: bool) -> float:
    """Refuses heads whose boxes cannot be decoded.

    Returns:
        The IoU threshold of the model's own NMS.
    """
    head = model.roi_head.bbox_head if by_regions else model.bbox_head
    if isinstance(head, nn.ModuleList):
        head = model.roi_head.bbox_head[-1]
    if not (hasattr(head, 'fc_reg') if by_regions else box_kind(head)):
        raise TapError(
            f"the view 'detections' does not know how {type(head).__name__} decodes its "
            'boxes. Distil features instead.'
        )
    if by_regions and model.rpn_head.test_cfg is None:
        raise TapError(
            "the view 'detections' takes the proposals that the teacher's rpn_head makes "
            'in a test, but its config has no test_cfg.rpn. Add it.'
        )
    config = (model.roi_head if by_regions else head).test_cfg or {}
    return float((config.get('nms') or {}).get('iou_threshold', IOU))
