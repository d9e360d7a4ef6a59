"""The rows of one image, as both sides see them, and where on the image they belong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from ..functional import box_iou
from ..views import Level, Predictions
from ..visualization.pictures import PlacedBoxes

_BOXES = 40  # of an image, those with the largest disagreement


@dataclass
class ImageRows:
    """Of one image at one level, on the CPU.

    Attributes:
        student: probabilities (P, A, C), or boxes (P, A, 4) in pixels.
        teacher: the same.
        values: how far both are apart at each position, (P,): the largest of its predictions, from
            0 to 1, and 0 where none counts.
        boxes: (P, 4) in pixels, of heads that have them and no map of the image.
        level: the student's.
    """

    student: Tensor
    teacher: Tensor
    values: Tensor
    boxes: Tensor | None
    level: Level


def rows_of(
    image: int,
    own: Level,
    theirs: Level,
    head: Predictions,
    columns: tuple[Tensor, Tensor] | None,
) -> ImageRows | None:
    """Takes the rows of an image out of a level of both sides.

    Args:
        image: its index in the batch.
        own: the student's level, which tells the images of the rows.
        theirs: the teacher's, in the same order.
        head: of the student.
        columns: columns of both that mean the same; None for all.

    Returns:
        The rows; None where the level has none of this image, as not all is repeated for it.
    """
    if own.images is None and image >= len(own.logits):
        return None

    def of_image(values: Tensor) -> Tensor:
        return values[image] if own.images is None else values[0][own.images[0] == image]

    picked = (None, None) if columns is None else columns
    student, teacher = (
        _probabilities(of_image(level.logits), head, chosen)
        for level, chosen in zip((own, theirs), picked)
    )
    values = difference(student, teacher, head.activation)
    for level in (own, theirs):
        if level.valid is not None:
            values = values * of_image(level.valid).to(values.device, values.dtype)
    values = values.nan_to_num().amax(-1) if values.numel() else values.flatten()
    boxes = None
    if own.boxes is not None and own.centers is None:
        boxes = of_image(own.boxes.decode()).detach().float()[:, 0].cpu()
    return ImageRows(student, teacher, values, boxes, own)


def difference(own: Tensor, theirs: Tensor, activation: str) -> Tensor:
    """How far probabilities (..., C) are apart, from 0 to 1: (...).

    With a softmax it is the total variation distance, half of the sum of all differences; with
    sigmoids the largest difference of a class. Of boxes it is one minus the IoU.
    """
    if activation == 'none':
        return 1 - box_iou(own.flatten(0, -2), theirs.flatten(0, -2)).view(own.shape[:-1])
    apart = (own - theirs).abs()
    return apart.sum(-1) / 2 if activation == 'softmax' else apart.amax(-1)


def places(
    levels: Sequence[ImageRows], head: Predictions, size: Sequence[int]
) -> np.ndarray | PlacedBoxes | None:
    """Where the numbers of all levels belong on an image of ``size`` (height, width).

    Returns:
        Of maps one as large as the image, the largest of the levels; of boxes those with the
        largest numbers; None for rows without a place, such as the pixels of regions' masks.
    """
    grids = [_on_grid(rows, head, size) for rows in levels]
    maps = [grid for grid in grids if grid is not None]
    if maps and len(maps) == len(grids):
        return torch.stack(maps).amax(0).numpy()
    boxes = [rows.boxes for rows in levels if rows.boxes is not None]
    if not boxes or len(boxes) < len(levels):
        return None
    values = torch.cat([rows.values for rows in levels])
    order = values.argsort(descending=True, stable=True)[:_BOXES]
    return PlacedBoxes(torch.cat(boxes)[order].numpy(), values[order].numpy())


def _probabilities(logits: Tensor, head: Predictions, columns: Tensor | None) -> Tensor:
    logits = logits.detach().float()
    if head.activation == 'none':
        return logits.cpu()
    logits = logits if columns is None else logits[..., columns]
    return (logits.softmax(-1) if head.activation == 'softmax' else logits.sigmoid()).cpu()


def _on_grid(rows: ImageRows, head: Predictions, size: Sequence[int]) -> Tensor | None:
    """The numbers of a map as large as the image; None where the rows are no map of it."""
    level, values = rows.level, rows.values
    shape = _shape(rows, head)
    if shape is None or shape[0] * shape[1] != len(values) or not len(values):
        return None
    grid = values.reshape(1, 1, *shape)
    if level.stride is None:
        return nnf.interpolate(grid, tuple(size), mode='nearest')[0, 0]
    wide = nnf.interpolate(grid, scale_factor=float(level.stride), mode='nearest')[0, 0]
    below, right = (max(0, side - n) for side, n in zip(size, wide.shape))
    return nnf.pad(wide, (0, right, 0, below))[: size[0], : size[1]]


def _shape(rows: ImageRows, head: Predictions) -> tuple[int, int] | None:
    """Height and width of the map whose positions the rows are, row by row."""
    level, count = rows.level, len(rows.values)
    if level.images is not None or rows.boxes is not None or not count:
        return None
    if level.centers is not None:
        width = int((level.centers[:, 1] == level.centers[0, 1]).sum())
        return count // width, width
    size = getattr(head.handover, 'size', None)
    if size is not None:
        return size[0], size[1]
    side = math.isqrt(count)
    return (side, side) if head.kind == 'dense' else None  # the cells of SOLO, no keypoints
