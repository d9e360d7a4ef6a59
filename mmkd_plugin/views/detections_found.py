"""What a teacher says of an image by its detections: the form in which they are handed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .class_forms import independent
from .predictions import HeadSpec

PER_IMAGE = 100  # detections that an image keeps
CANDIDATES = 1000  # boxes of an image, by score, that enter the NMS


@dataclass(frozen=True)
class Candidates:
    """All predictions of a teacher in one image, before the best are chosen.

    Attributes:
        boxes: corners (M, 4) in pixels of the batch's images.
        logits: class vectors (M, C) in the form of the teacher's head.
        quality: logits (M,) of centerness or objectness, or None.
        taint: a scalar, 0, or NaN where the teacher saw one.
        masks: how likely each pixel of the batch's images belongs to the object, (M, h, w): bool,
            or of 255 parts in bytes, or from 0 to 1. None where nobody asked for them.
    """

    boxes: Tensor
    logits: Tensor
    quality: Tensor | None
    taint: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class TeacherDetections:
    """What a teacher says of one image, whatever its kind; the best detection comes first.

    Nothing else of a teacher is needed to teach a student of another kind, so that the answers of
    a teacher may as well come from a file.

    Attributes:
        boxes: corners (M, 4) in pixels of the batch's images, within the image.
        logits: class vectors (M, C) in the form of the teacher's head, as its ``HeadSpec`` has it.
        scores: how sure it is of an object (M,), from 0 to 1.
        size: height and width of the image, without padding.
        taint: a scalar, 0, or NaN where the teacher saw one.
        masks: as those of :class:`Candidates`, of the image without padding, or None.
    """

    boxes: Tensor
    logits: Tensor
    scores: Tensor
    size: tuple[int, int]
    taint: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def at(self, index: Tensor) -> TeacherDetections:
        """Those of an index (K,) or of a bool (M,)."""
        masks = None if self.masks is None else self.masks[index]
        boxes, logits, scores = (x[index] for x in (self.boxes, self.logits, self.scores))
        return TeacherDetections(boxes, logits, scores, self.size, self.taint, masks)


def best_of(
    found: Candidates,
    form: HeadSpec,
    size: Sequence[int],
    shared: Tensor | None = None,
    iou: float | None = None,
) -> TeacherDetections:
    """Drops what is no box, and of boxes of a class that overlap all but the best; keeps 100.

    Args:
        found: all predictions of an image.
        form: of their class vectors.
        size: height and width of the image.
        shared: the teacher's classes by which boxes are ranked; None for all.
        iou: by which two boxes of a class are one object; None if the teacher's predictions are a
            set without doubles.
    """
    from mmcv.ops import batched_nms

    size = int(size[0]), int(size[1])
    boxes, logits = found.boxes.float(), found.logits.float()
    limit = boxes.new_tensor([size[1], size[0]] * 2)
    clipped = boxes.clamp(min=0).minimum(limit)
    usable = (clipped[:, 2:] > clipped[:, :2]).all(1)
    usable &= boxes.isfinite().all(1) & logits.isfinite().all(1)
    masks = None if found.masks is None else found.masks[usable, : size[0], : size[1]]
    boxes, logits = clipped[usable], logits[usable]
    if not len(boxes):
        return TeacherDetections(boxes, logits, boxes[:, 0], size, found.taint, masks)
    known = independent(logits, form)
    scores, labels = (known if shared is None else known[:, shared]).sigmoid().max(1)
    if found.quality is not None:
        scores = scores * found.quality[usable].float().sigmoid()
    kept = scores.topk(min(CANDIDATES, len(scores))).indices
    if iou is not None:
        nms = dict(type='nms', iou_threshold=iou)
        kept = kept[batched_nms(boxes[kept], scores[kept], labels[kept], nms)[1]]
    every = TeacherDetections(boxes, logits, scores, size, found.taint, masks)
    return every.at(kept[:PER_IMAGE])


def taint_of(*tensors: Tensor) -> Tensor:
    """0, or NaN if there is a NaN or an infinity among the numbers."""
    return torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).sum() * 0.0
