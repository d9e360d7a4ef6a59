"""Where the predictions of a dense head are, and which of these places count."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..taps import TapError
from ..taps.foreign import AnyModule
from .predictions import Level


def level_strides(head: AnyModule) -> tuple[int, ...]:
    """Pixels between neighbouring positions, level by level.

    Raises:
        TapError: strides that differ between the two axes.
    """
    pairs = [
        tuple(s) if isinstance(s, (tuple, list)) else (s, s) for s in head.prior_generator.strides
    ]
    if any(width != height for width, height in pairs):
        raise TapError(
            f'the strides of {type(head).__name__} differ between x and y: {pairs}. '
            'Levels are matched by one stride for both.'
        )
    return tuple(int(width) for width, _ in pairs)


def offset_of(prior_generator: Any) -> float:
    """Where in its cell a head's position is, in strides: 0 is the corner, 0.5 the middle."""
    centers = getattr(prior_generator, 'centers', None)
    if centers:  # of the anchors in the first cell of each level, in pixels
        return float(centers[0][0] / prior_generator.strides[0][0])
    offset = getattr(prior_generator, 'offset', None)
    return float(getattr(prior_generator, 'center_offset', 0.5) if offset is None else offset)


def centers_of(prior_generator: Any, maps: Tensor, stride: int) -> Tensor:
    """x and y (P, 2) of the positions of ``maps`` (N, C, H, W), row by row, in pixels."""
    y, x = (
        (torch.arange(size, device=maps.device, dtype=torch.float32) + offset_of(prior_generator))
        * stride
        for size in maps.shape[-2:]
    )
    grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)
    return grid.flatten(0, 1)


def by_position(maps: Tensor, priors: int) -> Tensor:
    """(N, A C, H, W) seen as (N, P, A, C); mmdet puts anchors outside, channels inside."""
    return maps.unflatten(1, (priors, -1)).flatten(3).permute(0, 3, 1, 2)


def valid_positions(
    level: Level, size: tuple[int, int], offset: float, data_samples: Any
) -> Tensor | None:
    """Whether a position lies in its image and in none of the image's ignore regions.

    Sizes of images are numbers on the host, so padding is cut off by slices; boxes of ignore
    regions stay on the device. Nothing is copied between them.

    Args:
        level: with logits (N, P, A, C) and centers.
        size: H and W of its map.
        offset: see :func:`offset_of`.
        data_samples: of the batch, with ``img_shape`` and, maybe, ``ignored_instances``.

    Returns:
        (N, P, A) bool, or None if all count.
    """
    if data_samples is None:
        return None
    assert level.centers is not None and level.stride is not None
    height, width = size
    extents, crowds = [], []
    for sample in data_samples:
        shape = sample.metainfo.get('img_shape', (math.inf, math.inf))
        rows, columns = (
            n if math.isinf(pixels) else min(n, max(0, math.ceil(pixels / level.stride - offset)))
            for n, pixels in zip(size, shape)
        )
        extents.append((rows, columns))
        crowds.append(ignored_boxes(sample))
    if all(e == (height, width) for e in extents) and all(boxes is None for boxes in crowds):
        return None
    n, p, a = level.logits.shape[:3]
    inside = level.logits.new_zeros((n, height, width), dtype=torch.bool)
    for i, (rows, columns) in enumerate(extents):
        inside[i, :rows, :columns] = True
    inside = inside.view(n, p)
    x, y = level.centers[:, :1], level.centers[:, 1:]
    for i, boxes in enumerate(crowds):
        if boxes is not None:
            left, top, right, bottom = boxes.to(level.centers.device).unbind(1)
            covered = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
            inside[i] &= ~covered.any(1)
    return inside.unsqueeze(-1).expand(n, p, a)


def ignored_boxes(sample: Any) -> Tensor | None:
    """Boxes (k, 4) of a sample's ignore regions (COCO's crowds); None if there are none."""
    boxes = getattr(getattr(sample, 'ignored_instances', None), 'bboxes', None)
    if boxes is None or not len(boxes):
        return None
    return getattr(boxes, 'tensor', boxes)
