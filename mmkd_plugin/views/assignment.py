"""Detections and positions: which box teaches which position, and what its logits say there."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 21  # pairs of boxes whose overlaps are computed at a time


def log_odds(logits: Tensor) -> Tensor:
    """Sigmoid logits of softmax probabilities: ``log(p / (1 - p))`` of each class.

    With ``p = softmax(z)`` these are ``z_c - log sum_{j != c} exp(z_j)``. Where c is not the
    largest, the sum of the others is far from zero and is the whole sum less one; for the largest
    it is summed anew, so that nothing cancels.

    Args:
        logits: (N, C), C of 2 or more.

    Returns:
        (N, C).

    >>> z = torch.tensor([[2.0, 0.5, -1.0]])
    >>> torch.allclose(log_odds(z).sigmoid(), z.softmax(1))
    True
    """
    top, best = logits.max(1, keepdim=True)
    others = torch.log((logits - top).exp().sum(1, keepdim=True) - (logits - top).exp())
    without = logits.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True) - top
    return logits - top - others.scatter(1, best, without)


def assign(centers: Tensor, boxes: Tensor, detections: Tensor) -> Tensor:
    """For each of the student's predictions the detection that teaches it.

    Among the detections that contain the position's centre it is the one with the highest IoU with
    the predicted box; of equal ones, the first.

    Args:
        centers: x and y (P, 2).
        boxes: the student's own (P, A, 4).
        detections: (M, 4).

    Returns:
        Indices (P, A); M where no detection contains the centre.

    >>> centers = torch.tensor([[5.0, 5.0], [50.0, 50.0]])
    >>> boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]], [[45.0, 45.0, 55.0, 55.0]]])
    >>> detections = torch.tensor([[0.0, 0.0, 20.0, 20.0], [1.0, 1.0, 10.0, 10.0]])
    >>> assign(centers, boxes, detections).tolist()
    [[1], [2]]
    """
    from torchvision.ops import box_iou  # comes with mmdet, not with a classifier

    count = len(detections)
    if not count:
        return torch.zeros(boxes.shape[:2], dtype=torch.long, device=boxes.device)
    found = []
    size = max(1, _CHUNK // (boxes.shape[1] * count))
    for place, own in zip(centers.split(size), boxes.split(size)):
        place = place[:, None].to(detections.dtype)
        inside = (place >= detections[:, :2]) & (place <= detections[:, 2:])
        # Of empty, reversed and boundless boxes torchvision makes 0, -0 or NaN.
        overlap = box_iou(own.flatten(0, 1), detections).nan_to_num(nan=0.0)
        overlap = overlap.view(*own.shape[:2], count).masked_fill(~inside.all(2)[:, None], -1.0)
        best, index = overlap.max(2)
        found.append(index.masked_fill(best < 0, count))
    return torch.cat(found)
