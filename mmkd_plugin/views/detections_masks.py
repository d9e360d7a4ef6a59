"""A teacher's masks, given to the masks that a student of another kind trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as nnf

from .assignment import REGION_IOU, assign_objects
from .detections_answers import boxes_of_masks
from .detections_found import TeacherDetections
from .grid_masks import of_pixels
from .predictions import Level, MaskGrid, PairContext, Predictions

_SURE = 0.02  # a pixel is never nearer to 0 or 1: masks of most teachers are but yes or no
_CHUNK = 1 << 25  # pixels of the teacher's masks that are looked at together


def masks_for(
    own: Sequence[Predictions], found: Sequence[TeacherDetections], pair: PairContext
) -> list[Predictions]:
    """The teacher's pixels for each of the student's heads.

    A mask of the student is one of an object, as its target shows it. It is taught by the mask of
    what the teacher takes this object for: of the masks whose box overlaps that of the target by an
    IoU of 0.5 or more, the one with the largest IoU times score. Pixels of other masks of the
    student are not valid.

    Args:
        own: the student's, with labels.
        found: the detections of each image, with masks.
        pair: what the term knows of both.
    """
    return [
        Predictions.of(head.spec, [_level(level, found, pair.class_map) for level in head.levels])
        for head in own
    ]


def _level(own: Level, found: Sequence[TeacherDetections], class_map: Tensor | None) -> Level:
    grid = own.grid
    assert grid is not None and own.labels is not None  # a view of masks, in training
    inside = own.labels.view(-1, *grid.size) == 0
    truth = _in_pixels(boxes_of_masks(inside), grid)
    images = grid.windows[:, 0].long() % len(found)
    likely = torch.full(inside.shape, 0.5, device=inside.device)
    score = likely.new_zeros(len(inside))
    matched = torch.zeros_like(score, dtype=torch.bool)
    for image, one in enumerate(found):
        assert one.masks is not None  # the reader was asked for them
        boxes = boxes_of_masks(one.masks > _half(one.masks))
        index = assign_objects(truth, boxes, one.scores, REGION_IOU)
        here = (images == image) & (index < len(one))
        if grid.classes is not None and class_map is not None:
            here = here & (class_map[grid.classes] >= 0)
        rows = here.nonzero()[:, 0]  # waits
        if not len(rows):
            likely = torch.where((images == image)[:, None, None], likely + one.taint, likely)
            continue
        seen = _at(one.masks, index[rows], grid.windows[rows, 1:], grid.size)
        likely[rows] = seen + one.taint
        score[rows] = one.scores[index[rows]]
        matched[rows] = True
    valid = of_pixels(matched, grid.size)
    return Level(
        logits=likely.clamp(_SURE, 1 - _SURE).logit().reshape(1, -1, 1, 1),
        valid=valid if own.valid is None else valid & own.valid,
        score=of_pixels(score, grid.size),
        images=own.images,
    )


def _in_pixels(boxes: Tensor, grid: MaskGrid) -> Tensor:
    """Boxes (K, 4) in pixels of the masks as corners in pixels of the batch's images."""
    height, width = grid.size
    parts = boxes / boxes.new_tensor([width, height] * 2)
    windows = grid.windows[:, 1:].to(boxes)
    first, last = windows[:, :2], windows[:, 2:]
    return first.repeat(1, 2) + parts * (last - first).repeat(1, 2)


def _at(masks: Tensor, index: Tensor, windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (M, H, W) of an index (K,), at the middles of the pixels of windows (K, 4): (K, h, w).

    They are interpolated bilinearly.
    """
    step = max(1, _CHUNK // max(1, masks.shape[1:].numel()))
    parts = []
    for chosen, window in zip(index.split(step), windows.float().split(step)):
        whole = masks[chosen, None].float() / (2 * _half(masks))
        grid = _places(window, size, masks.shape[1:])
        parts.append(nnf.grid_sample(whole, grid, padding_mode='border', align_corners=False)[:, 0])
    return torch.cat(parts)


def _half(masks: Tensor) -> float:
    """Half of what a pixel has that belongs to its object for sure."""
    return 127.5 if masks.dtype == torch.uint8 else 0.5


def _places(windows: Tensor, size: Sequence[int], whole: Sequence[int]) -> Tensor:
    """Middles of the pixels (K, h, w, 2) of windows in an image, from -1 to 1 over the image."""
    axes = []
    for axis, (count, length) in enumerate(zip(reversed(size), reversed(whole))):  # x, then y
        middles = (torch.arange(count, device=windows.device) + 0.5) / count
        first, last = windows[:, axis, None], windows[:, axis + 2, None]
        axes.append((first + middles * (last - first)) * (2 / length) - 1)
    x, y = axes
    return torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1)
