"""Heads whose boxes have an angle, such as those of MMRotate."""

from __future__ import annotations

from torch import nn

from ..taps import TapError
from ..taps.foreign import AnyModule


def has_angle_maps(head: AnyModule) -> bool:
    """Whether a dense head gives an output of angles of its own, right after that of the boxes."""
    return hasattr(head, 'angle_coder')


def predicts_angles(head: AnyModule) -> bool:
    """Whether a head's boxes are rotated: four numbers do not tell them."""
    coder = getattr(head, 'bbox_coder', None)
    return has_angle_maps(head) or getattr(coder, 'encode_size', 4) > 4


def heads_with_angles(model: AnyModule) -> list[AnyModule]:
    """The model's box heads, if one of them predicts rotated boxes; else none."""
    roi_head = getattr(model, 'roi_head', None)
    head = getattr(model if roi_head is None else roi_head, 'bbox_head', None)
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    return heads if any(predicts_angles(one) for one in heads) else []


def refuse_angles(model: AnyModule) -> None:
    """Refuses a model of rotated boxes where upright ones are compared.

    Raises:
        TapError: saying what to take instead.
    """
    heads = heads_with_angles(model)
    if heads:
        raise TapError(
            f"{type(heads[-1]).__name__} predicts rotated boxes, and 'detections' are compared by "
            "the IoU of upright ones. Take a teacher whose rows are the student's "
            "(teacher='cls_logits'), or distil features."
        )
