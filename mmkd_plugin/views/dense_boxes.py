"""Box outputs of dense heads, decoded by the head's own coder.

Outputs are those of training: FCOS gives distances in strides there, RepPoints sets of points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..functional.checks import widen
from ..taps.foreign import AnyModule
from .dense_geometry import by_position
from .predictions import Boxes


def box_kind(head: AnyModule) -> str | None:
    """How a head describes boxes, as in :class:`Boxes`; None if it is in no known way."""
    if reg_max(head) is not None:
        return 'dfl'
    if hasattr(head, 'points2bbox'):
        return 'points'
    if hasattr(head, 'deform_sampling'):  # TOOD's maps are boxes
        return 'corners'
    coder = getattr(head, 'bbox_coder', None)
    if hasattr(head, '_bbox_decode'):  # YOLOX's, without a coder; FoveaBox ignores its coder
        return 'cxcywh' if coder is None else None
    names = [cls.__name__ for cls in type(coder).__mro__]
    if 'DistancePointBBoxCoder' in names:
        return 'ltrb'
    if 'YOLOBBoxCoder' in names:
        return 'cells'
    if coder is None or not hasattr(head.prior_generator, 'base_anchors'):
        return None
    return 'deltas'


def reg_max(head: AnyModule) -> int | None:
    """r of a head that predicts each side as a distribution over r + 1 distances; else None."""
    value = getattr(head, 'reg_max', None)
    if not isinstance(value, int) or not isinstance(getattr(head, 'integral', None), nn.Module):
        return None
    return value


def box_maps(head: AnyModule, outputs: Sequence[Tensor], priors: int) -> tuple[int, str] | None:
    """Which of a head's outputs at a level are the final boxes: its index and kind, or None.

    The last one with as many channels as boxes need: heads that refine give the refined last.
    """
    kind = box_kind(head)
    if kind is None:
        return None
    width = 4
    if kind == 'dfl':
        width = 4 * (head.reg_max + 1)
    elif kind == 'points':
        width = 2 * head.num_points
    fitting = [i for i in range(1, len(outputs)) if outputs[i].shape[1] == priors * width]
    return (fitting[-1], kind) if fitting else None


def read_boxes(head: AnyModule, kind: str, box_map: Tensor, level: int, priors: int) -> Boxes:
    """The boxes of one level of a dense head.

    Args:
        head: the dense head that gave them.
        kind: what :func:`box_kind` says of it.
        box_map: its box output, (N, A D, H, W).
        level: index of the level.
        priors: A, predictions per position.
    """
    raw = partial(by_position, box_map, priors)
    decode = partial(_DECODERS[kind], head, box_map, level, priors)
    if kind == 'ltrb':  # asked now: whoever decodes later may have switched the head's mode
        decode = partial(decode, in_strides=head.training and _trains_in_strides(head))
    return Boxes(kind, raw, decode)


def _box_rows(box_map: Tensor, priors: int) -> Tensor:
    """(N, A D, H, W) as rows (N, P A, D) in the order of the head's priors."""
    rows = widen(box_map).flatten(2).transpose(1, 2)
    return rows.reshape(box_map.shape[0], -1, box_map.shape[1] // priors)


def _grid(head: AnyModule, box_map: Tensor, level: int, **kwargs: bool) -> Tensor:
    """The level's own priors: anchors (P A, 4), or points (P, 2)."""
    return head.prior_generator.single_level_grid_priors(
        tuple(box_map.shape[-2:]), level, device=box_map.device, **kwargs
    )


def anchors_of(head: AnyModule, box_map: Tensor, level: int, priors: int) -> Tensor | None:
    """Corners (P, A, 4) of the level's anchors; None of a head that predicts at points."""
    if not hasattr(head.prior_generator, 'base_anchors'):
        return None
    anchors = _grid(head, box_map, level)
    return getattr(anchors, 'tensor', anchors).view(-1, priors, 4)


def _points(head: AnyModule, box_map: Tensor, level: int) -> Tensor:
    """Points (P A, 2) that distances are measured from: of an anchor, its centre."""
    grid = _grid(head, box_map, level)
    return (grid[:, :2] + grid[:, 2:4]) / 2 if grid.shape[1] == 4 else grid


def _stride(head: AnyModule, level: int) -> float:
    stride = head.prior_generator.strides[level]
    return stride[0] if isinstance(stride, (tuple, list)) else stride


def _trains_in_strides(head: AnyModule) -> bool:
    """Whether distances are in strides in training; in eval mode they always are in pixels."""
    centernet = any(cls.__name__ == 'CenterNetUpdateHead' for cls in type(head).__mro__)
    return bool(getattr(head, 'norm_on_bbox', centernet))


def _coded(head: AnyModule, priors: Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    boxes = head.bbox_coder.decode(priors.repeat(len(rows), 1), rows.flatten(0, 1))
    return getattr(boxes, 'tensor', boxes).view(shape)


def _shape(box_map: Tensor, priors: int) -> tuple[int, ...]:
    return len(box_map), box_map[0, 0].numel(), priors, 4


def _from_deltas(head: AnyModule, box_map: Tensor, level: int, priors: int) -> Tensor:
    anchors = _grid(head, box_map, level)
    anchors = getattr(anchors, 'tensor', anchors)
    return _coded(head, anchors, _box_rows(box_map, priors), _shape(box_map, priors))


def _from_ltrb(
    head: AnyModule, box_map: Tensor, level: int, priors: int, in_strides: bool
) -> Tensor:
    rows = _box_rows(box_map, priors)
    if in_strides:
        rows = rows * _stride(head, level)
    return _coded(head, _points(head, box_map, level), rows, _shape(box_map, priors))


def _from_dfl(head: AnyModule, box_map: Tensor, level: int, priors: int) -> Tensor:
    rows = _box_rows(box_map, priors)
    distances = head.integral(rows.flatten(0, 1)).view(*rows.shape[:2], 4) * _stride(head, level)
    return _coded(head, _points(head, box_map, level), distances, _shape(box_map, priors))


def _from_points(head: AnyModule, box_map: Tensor, level: int, priors: int) -> Tensor:
    offsets = _box_rows(head.points2bbox(widen(box_map)), priors) * _stride(head, level)
    centers = _points(head, box_map, level)
    return (offsets + centers.repeat(1, 2)).view(_shape(box_map, priors))


def _from_cxcywh(head: AnyModule, box_map: Tensor, level: int, priors: int) -> Tensor:
    grid = _grid(head, box_map, level, with_stride=True)
    return head._bbox_decode(grid, _box_rows(box_map, priors)).view(_shape(box_map, priors))


def _from_corners(head: AnyModule, box_map: Tensor, level: int, priors: int) -> Tensor:
    rows = _box_rows(box_map, priors) * _stride(head, level)
    return rows.view(_shape(box_map, priors))


def _from_cells(head: AnyModule, box_map: Tensor, level: int, priors: int) -> Tensor:
    rows = _box_rows(box_map, priors)
    rows = torch.cat([rows[..., :2].sigmoid(), rows[..., 2:]], dim=-1)
    boxes = head.bbox_coder.decode(_grid(head, box_map, level), rows, _stride(head, level))
    return boxes.view(_shape(box_map, priors))


_DECODERS: dict[str, Callable[..., Tensor]] = dict(
    deltas=_from_deltas,
    ltrb=_from_ltrb,
    dfl=_from_dfl,
    points=_from_points,
    cxcywh=_from_cxcywh,
    corners=_from_corners,
    cells=_from_cells,
)
