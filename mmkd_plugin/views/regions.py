"""What views of RoI heads have in common: where regions come from, and who may follow them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import placed
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .batch import check_image_count
from .loss_calls import LossCall, loss_calls


@dataclass(frozen=True)
class Regions:
    """What a student's view of a RoI head hands over to the teacher's.

    Attributes:
        rois: (R, 5): image, x1, y1, x2, y2 on the student's maps.
        images: how many images these maps hold; None if nothing was pooled from them.
    """

    rois: Tensor
    images: int | None


# What else some RoI heads feed their stages with; each is an attribute ``with_<name>``.
FUSED = ('semantic', 'glbctx', 'feat_relay')


def paths_of(roi_head: AnyModule, name: str) -> list[str]:
    """Paths of a part of the RoI head: one, or one per stage of a cascade."""
    part = getattr(roi_head, name)
    if isinstance(part, nn.ModuleList):
        return [f'roi_head.{name}.{stage}' for stage in range(len(part))]
    return [f'roi_head.{name}']


def pyramid_point(model: AnyModule) -> TapPoint:
    """Where the features that ``roi_head`` pools from come out."""
    return TapPoint('neck' if isinstance(getattr(model, 'neck', None), nn.Module) else 'backbone')


def pyramid(recorder: Recorder, point: TapPoint) -> tuple[Tensor, ...]:
    """The maps of this step."""
    calls = recorder.raw(point)
    if len(calls) != 1:
        raise TapError(
            f'The {recorder.role} ran {point.path!r} {len(calls)} times in this step; a view of '
            'its RoI head reads models that run it once.'
        )
    return tuple(calls[0]) if isinstance(calls[0], (tuple, list)) else (calls[0],)


def stage_arguments(forward: Any, stage: int) -> tuple[int, ...]:
    """``(stage,)`` if a RoI head's ``_bbox_forward`` or ``_mask_forward`` wants it, else ``()``."""
    return (stage,) if 'stage' in inspect.signature(forward).parameters else ()


def pools_rois(forward: Any) -> bool:
    """Whether features and RoIs are all that ``forward`` needs (and the stage, in a cascade)."""
    if forward is None:
        return False
    needed = [
        p.name
        for p in inspect.signature(forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return set(needed) <= {'stage', 'x', 'rois'}


def refuse_fused(model: AnyModule, where: str) -> None:
    """Refuses a teacher whose RoI head also reads what its own forward computes on the way.

    Raises:
        TapError: naming that feature.
    """
    fused = [name for name in FUSED if getattr(model.roi_head, f'with_{name}', False)]
    if fused:
        raise TapError(
            f"{where}: the teacher's {type(model.roi_head).__name__} feeds its stages with more "
            f"than RoIs ({', '.join('with_' + name for name in fused)}), so the student's RoIs "
            'cannot be put through it. Take a teacher without it, or distil features.'
        )


def check_stages(student: Sequence, heads: Sequence[str], what: str, where: str) -> None:
    """Refuses a student whose RoI head has more or fewer stages than the teacher's.

    Raises:
        TapError: naming the teacher's ``heads``.
    """
    if len(student) != len(heads):
        raise TapError(
            f'{where}: the student has {len(student)} stages of {what} and the teacher '
            f'{len(heads)} ({", ".join(heads)}); they are compared one by one.'
        )


def last_loss_call(recorder: Recorder, point: TapPoint, rows: int) -> LossCall | None:
    """The last call of a loss with ``rows`` predictions; None if there was no such call.

    A head calls its loss once, or a second time with weights that came of the first (PISA).
    """
    calls = [call for call in loss_calls(recorder, point) if len(call.pred) == rows]
    return calls[-1] if calls else None


def rois_of(recorder: Recorder, point: TapPoint, rows: int, last: bool = False) -> Tensor:
    """The ``rows`` RoIs (R, 5) that a RoI extractor was given: image, x1, y1, x2, y2.

    An extractor may serve boxes, then masks, and regions of several scales; its first call with as
    many RoIs as there are predictions is that of the boxes, its last one that of the masks.
    """
    found = []
    for args, kwargs in recorder.raw(point):
        rois = kwargs['rois'] if 'rois' in kwargs else args[1]
        if len(rois) == rows:
            found.append(rois.detach())
    if not found:
        raise TapError(
            f'The {recorder.role} gave {rows} predictions, but {point.path!r} was never called '
            'with as many RoIs in this step.'
        )
    return found[-1 if last else 0]


def images_of(recorder: Recorder, point: TapPoint) -> int | None:
    """How many images the maps hold that a RoI extractor pools from; None if it did not run."""
    for args, kwargs in recorder.raw(point):
        maps = kwargs['feats'] if 'feats' in kwargs else args[0]
        return maps[0].shape[0]
    return None


def rois_on(maps: Sequence[Tensor], student: Regions, copies: int, where: str) -> Tensor:
    """The student's RoIs (R, 5) as RoIs on the maps of a teacher that sees each image once.

    Args:
        maps: the teacher's.
        student: what its view handed over.
        copies: images on the student's maps for one on the teacher's.
        where: names the term in messages.

    Raises:
        TapError: the student's maps hold other images.
    """
    own, rois = maps[0].shape[0], student.rois
    if student.images in (None, own):
        return rois
    with placed(where):
        check_image_count(student.images, own * copies)
    return torch.cat([rois[:, :1] % own, rois[:, 1:]], 1)
