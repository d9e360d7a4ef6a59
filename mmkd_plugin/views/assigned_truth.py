"""Which object of an image a row was assigned to, where the head's loss does not tell its box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional.checks import widen
from .predictions import Level

_CHUNK = 1 << 21  # pairs of boxes that are looked at together
_ROUNDING = 0.01  # of a box's larger side, as boxes in half precision have it


def assigned_truth(
    level: Level, boxes: Tensor, data_samples: Sequence[Any], heard: Sequence[Tensor] = ()
) -> Tensor:
    """The objects that a level's rows were assigned to.

    The row's label says the class. Of several objects of that class it is the one that the head's
    own box loss was told. Where that was not heard, it is one that contains the row's position, if
    one does. Among these it is the one with the highest IoU with the row's
    anchor or RoI, with which assigners compare objects; of a head without anchors, with the box
    that the student itself predicts.

    Args:
        level: the student's, with labels (N, P, A), and anchors or centers where it has them.
        boxes: the student's (N, P, A, 4).
        data_samples: of the batch, with ``gt_instances``. The level may hold it several times.
        heard: guesses (N, P, A, 4), of which one that is an object's box is right.

    Returns:
        Corners (N, P, A, 4); anything for rows of no class.
    """
    assert level.labels is not None
    places = boxes if level.anchors is None else level.anchors.to(boxes.dtype).expand_as(boxes)
    found = [_objects(sample, boxes) for sample in data_samples]
    if level.images is not None:  # the rows of all images behind one another
        rows = level.images.flatten() % len(found)
        rows = rows.repeat_interleave(level.labels.shape[2])
        images = [torch.full_like(known, i) for i, (_, known) in enumerate(found)]
        objects, classes = (torch.cat(parts) for parts in zip(*found))
        of_image = rows[:, None], torch.cat(images)
        labels = level.labels.flatten()
        truth = _nearest(places.flatten(0, 2), labels, None, objects, classes, of_image=of_image)
        return truth.view_as(boxes)
    centers = level.centers
    if centers is not None:
        centers = centers.repeat_interleave(level.labels.shape[2], 0)
    of_images = [
        _nearest(
            own.flatten(0, 1),
            labels.flatten(),
            centers,
            *found[i % len(found)],
            [guess[i].flatten(0, 1) for guess in heard],
        )
        for i, (own, labels) in enumerate(zip(places, level.labels))
    ]
    return torch.stack(of_images).view_as(boxes)


def _objects(sample: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (K, 4) and classes (K,) of an image's objects."""
    objects = sample.gt_instances
    corners = getattr(objects.bboxes, 'tensor', objects.bboxes)
    return corners.to(boxes), objects.labels.to(boxes.device)


def _nearest(
    places: Tensor,
    labels: Tensor,
    centers: Tensor | None,
    objects: Tensor,
    classes: Tensor,
    heard: Sequence[Tensor] = (),
    of_image: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """For each of R places the object of its class (and image) that it belongs to, (R, 4)."""
    from torchvision.ops import box_iou  # comes with mmdet, not with a classifier

    count = len(objects)
    if not count:
        return torch.zeros_like(places)
    found = []
    step = max(1, _CHUNK // count)
    for begin in range(0, len(places), step):
        part = slice(begin, begin + step)
        # Of empty, reversed and boundless boxes torchvision makes 0, -0 or NaN.
        near = widen(box_iou(places[part], objects)).nan_to_num(nan=0.0)
        if centers is not None:
            at = centers[part, None].to(objects.dtype)
            inside = (at >= objects[:, :2]) & (at <= objects[:, 2:])
            near = near + 2 * inside.all(2).to(near.dtype)
        for guess in heard:
            near = near + 4 * _same(guess[part, None], objects).to(near.dtype)
        other = labels[part, None] != classes
        if of_image is not None:
            other = other | (of_image[0][part] != of_image[1])
        found.append(objects[near.masked_fill(other, -1.0).argmax(1)])
    return torch.cat([*found, places[:0]])


def _same(guess: Tensor, objects: Tensor) -> Tensor:
    """Whether boxes (R, 1, 4) are those of objects (K, 4), within rounding: (R, K)."""
    size = (objects[:, 2:] - objects[:, :2]).amax(1)
    return (guess - objects).abs().amax(2) <= _ROUNDING * size
