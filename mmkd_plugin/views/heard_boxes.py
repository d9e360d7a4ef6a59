"""What a dense head's box loss was given: the objects of its rows, in whatever unit it computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional.checks import widen
from ..taps import Recorder, TapPoint
from ..taps.foreign import AnyModule
from .loss_calls import loss_calls

_LOSSES = ('loss_bbox_refine', 'loss_bbox')  # RepPoints regresses twice
_LEAST = 1e-6  # pixels or strides


def box_loss_points(head: AnyModule, path: str) -> list[TapPoint]:
    """The inputs of the loss of a head's final boxes; none where that is no module."""
    names = [name for name in _LOSSES if isinstance(getattr(head, name, None), torch.nn.Module)]
    return [TapPoint(f'{path}.{name}', source='input') for name in names[:1]]


def heard_boxes(
    recorder: Recorder,
    points: Sequence[TapPoint],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
) -> list[list[Tensor]]:
    """Guesses at the corners of each row's object, from prediction and target in the head's loss.

    Losses are given all rows, or those with an object, level by level or image by image, in pixels
    or in strides. In each of these units the target is as far from the prediction as the object is
    from the decoded box, but for a factor, which is that of their widths. So every reading of the
    order gives a guess, and the right one ends on an object of the image. Who asks tells it by
    that: a reading that is wrong ends anywhere.

    Args:
        recorder: of the student, after its loss.
        points: see :func:`box_loss_points`.
        boxes: decoded, (N, P, A, 4) of every level.
        labels: (N, P, A) of every level; ``num_classes`` and more, or less than 0, for no object.
        num_classes: how many there are.

    Returns:
        For every level its guesses, each (N, P, A, 4); none where the loss was not called.
    """
    calls = [pair for point in points for pair in _pairs(recorder, point)]
    if not calls:
        return [[] for _ in boxes]
    shapes = [level.shape[:3] for level in boxes]
    rows = sum(shape.numel() for shape in shapes)
    found: list[list[Tensor]] = [[] for _ in boxes]
    # Some heads compute the loss of some rows first, to choose or to weigh their positives.
    for heard in [calls] if len(calls) == 1 else [calls, calls[-1:]]:
        pred, target = (torch.cat(parts) for parts in zip(*heard))
        if not len(pred):
            continue
        for by_level in (True, False) if len(shapes) > 1 and shapes[0][0] > 1 else (True,):
            index = _ranks(labels, num_classes, by_level, everything=len(pred) == rows)
            for level, own, i in zip(found, boxes, index):
                i = i.clamp(0, len(pred) - 1)
                level.append(_moved(own, pred[i], target[i]))
    return found


def _pairs(recorder: Recorder, point: TapPoint) -> list[tuple[Tensor, Tensor]]:
    """Predictions and targets (k, 4) of each call of the loss."""
    calls = loss_calls(recorder, point)
    pairs = [(call.pred, call.target) for call in calls if isinstance(call.target, Tensor)]
    return [
        (widen(pred.detach()), widen(target.detach()))
        for pred, target in pairs
        if pred.dim() == 2 and pred.shape == target.shape and pred.shape[1] == 4
    ]


def _ranks(
    labels: Sequence[Tensor], num_classes: int, by_level: bool, everything: bool
) -> list[Tensor]:
    """Which of the loss's rows each row of the levels is, (N, P, A) for each."""
    counted = [
        torch.ones_like(x) if everything else ((x >= 0) & (x < num_classes)).long() for x in labels
    ]
    if by_level:
        flat = torch.cat([x.flatten() for x in counted]).cumsum(0) - 1
        parts = flat.split([x.numel() for x in labels])
    else:
        per_image = torch.cat([x.flatten(1) for x in counted], 1)
        whole = (per_image.flatten().cumsum(0) - 1).view_as(per_image)
        parts = whole.split([x.shape[1] * x.shape[2] for x in labels], 1)
    return [part.reshape(x.shape) for part, x in zip(parts, labels)]


def _moved(own: Tensor, pred: Tensor, target: Tensor) -> Tensor:
    """The box as far from ``own`` as ``target`` is from ``pred``, in units of their sizes."""
    sizes = [(x[..., 2:] - x[..., :2]).abs().sum(-1, keepdim=True) for x in (own, pred)]
    unit = sizes[0] / sizes[1].clamp(min=_LEAST)
    return (own - pred * unit) + target * unit  # in pixels the first is 0, whatever their size
