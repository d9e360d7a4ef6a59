"""Detections and a student's places: which box teaches which of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 21  # pairs of boxes whose overlaps are computed at a time
REGION_IOU = 0.5  # of a region and the detection that teaches it, at least


def assign(centers: Tensor, boxes: Tensor | None, detections: Tensor) -> Tensor:
    """For each of the student's predictions the detection that teaches it.

    Among the detections that contain the position's centre it is the one with the highest IoU with
    the predicted box; of equal ones, the first. Where a head predicts no boxes, it is the smallest.

    Args:
        centers: x and y (P, 2).
        boxes: the student's own (P, A, 4), or None.
        detections: (M, 4).

    Returns:
        Indices (P, A), A = 1 without boxes; M where no detection contains the centre.

    >>> centers = torch.tensor([[5.0, 5.0], [50.0, 50.0]])
    >>> boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]], [[45.0, 45.0, 55.0, 55.0]]])
    >>> detections = torch.tensor([[0.0, 0.0, 20.0, 20.0], [1.0, 1.0, 10.0, 10.0]])
    >>> assign(centers, boxes, detections).tolist()
    [[1], [2]]
    """
    count = len(detections)
    if not count:
        shape = (len(centers), 1) if boxes is None else boxes.shape[:2]
        return torch.zeros(shape, dtype=torch.long, device=centers.device)
    if boxes is None:
        areas = (detections[:, 2:] - detections[:, :2]).prod(1)
        areas = areas.expand(len(centers), -1)
        least, index = areas.masked_fill(~_contained(centers, detections), torch.inf).min(1)
        return index.masked_fill(least.isinf(), count)[:, None]
    found = []
    size = max(1, _CHUNK // (boxes.shape[1] * count))
    for place, own in zip(centers.split(size), boxes.split(size)):
        inside = _contained(place, detections)
        overlap = _overlaps(own.flatten(0, 1), detections).view(*own.shape[:2], count)
        best, index = overlap.masked_fill(~inside[:, None], -1.0).max(2)
        found.append(index.masked_fill(best < 0, count))
    return torch.cat(found)


def assign_regions(rois: Tensor, detections: Sequence[Tensor]) -> Tensor:
    """For each region the detection of its image that overlaps most, by an IoU of 0.5 or more.

    Args:
        rois: (R, 5): image, x1, y1, x2, y2.
        detections: of each image, (M, 4).

    Returns:
        Indices (R,) into the detections of the region's image; their number M for none.

    >>> rois = torch.tensor([[0.0, 0, 0, 10, 10], [0, 50, 50, 60, 60]])
    >>> assign_regions(rois, [torch.tensor([[1.0, 1.0, 10.0, 10.0]])]).tolist()
    [0, 1]
    """
    index = torch.zeros(len(rois), dtype=torch.long, device=rois.device)
    for image, boxes in enumerate(detections):
        if not len(boxes):
            continue
        best, own = _overlaps(rois[:, 1:], boxes).max(1)
        own = own.masked_fill(best < REGION_IOU, len(boxes))
        index = torch.where(rois[:, 0] == image, own, index)
    return index


def assign_objects(truth: Tensor, detections: Tensor, scores: Tensor, least: float = 0.0) -> Tensor:
    """For each row's object what the teacher takes it for: of the detections that overlap it, the
    one with the largest IoU times score; of equal ones, the first.

    Args:
        truth: corners (R, 4) of the objects.
        detections: of the same image, (M, 4).
        scores: how sure the teacher is of them (M,).
        least: by which IoU a detection overlaps at least; any above 0 by default.

    Returns:
        Indices (R,); M where none overlaps.

    >>> truth = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    >>> detections = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 10.0]])
    >>> assign_objects(truth, detections, torch.tensor([0.9, 0.1])).tolist()
    [0, 2]
    """
    count = len(detections)
    if not count:
        return torch.zeros(len(truth), dtype=torch.long, device=truth.device)
    found = []
    for part in truth.split(max(1, _CHUNK // count)):
        overlaps = _overlaps(part, detections)
        best, index = (overlaps.where(overlaps >= least, 0.0) * scores).max(1)
        found.append(index.masked_fill(best <= 0, count))
    return torch.cat([*found, truth.new_zeros(0, dtype=torch.long)])


def _contained(centers: Tensor, detections: Tensor) -> Tensor:
    """Whether each of the detections (M, 4) contains each of the centres (P, 2): (P, M)."""
    place = centers[:, None].to(detections.dtype)
    return ((place >= detections[:, :2]) & (place <= detections[:, 2:])).all(2)


def _overlaps(own: Tensor, detections: Tensor) -> Tensor:
    """IoU of boxes (N, 4) and (M, 4): (N, M)."""
    from torchvision.ops import box_iou  # comes with mmdet, not with a classifier

    # Of empty, reversed and boundless boxes torchvision makes 0, -0 or NaN.
    return box_iou(own.to(detections.dtype), detections).nan_to_num(nan=0.0)
