"""What views of RoI heads have in common: where regions come from, and who may follow them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView
from .batch import check_image_count
from .loss_calls import LossCall, loss_calls
from .predictions import ALIKE, HeadSpec, Level, PairContext, Predictions


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
# Of these a head of this name makes features of the pyramid alone, for boxes and masks.
FROM_PYRAMID = ('semantic', 'glbctx')


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


def refuse_fused(model: AnyModule) -> None:
    """Refuses a teacher whose RoI head also reads what its own forward computes on the way.

    Raises:
        TapError: naming that feature.
    """
    _refuse(model, [name for name in FUSED if getattr(model.roi_head, f'with_{name}', False)])


def check_fused(model: AnyModule, forward: Any) -> None:
    """The same for ``_bbox_forward``, which may be told such features as ``<name>_feat``.

    Raises:
        TapError: naming a feature that it does not take.
    """
    known = inspect.signature(forward).parameters
    own = [name for name in FROM_PYRAMID if getattr(model.roi_head, f'with_{name}', False)]
    _refuse(model, [name for name in own if f'{name}_feat' not in known])


def fused_features(roi_head: AnyModule, forward: Any, maps: tuple[Tensor, ...]) -> dict[str, Any]:
    """What a RoI head's ``forward`` reads beside the RoIs, by argument, made of the same maps."""
    known = inspect.signature(forward).parameters
    return {
        f'{name}_feat': getattr(roi_head, f'{name}_head')(maps)[1]
        for name in FROM_PYRAMID
        if f'{name}_feat' in known and getattr(roi_head, f'with_{name}', False)
    }


def _refuse(model: AnyModule, fused: Sequence[str]) -> None:
    if fused:
        raise TapError(
            f"the teacher's {type(model.roi_head).__name__} feeds its stages with more "
            f"than RoIs ({', '.join('with_' + name for name in fused)}), so the student's RoIs "
            'cannot be put through it. Take a teacher without it, or distil features.'
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
    """How many images the maps hold that a RoI extractor pools from; None if it did not run.

    Samplers that look for hard regions (OHEM, PISA) call it image by image first.
    """
    calls = [
        kwargs['feats'] if 'feats' in kwargs else args[0] for args, kwargs in recorder.raw(point)
    ]
    return max((maps[0].shape[0] for maps in calls), default=None)


def rois_on(maps: Sequence[Tensor], student: Regions, copies: int) -> Tensor:
    """The student's RoIs (R, 5) as RoIs on the maps of a teacher that sees each image once, while
    the student's maps hold so many copies of it.

    Raises:
        TapError: the student's maps hold other images.
    """
    own, rois = maps[0].shape[0], student.rois
    if student.images in (None, own):
        return rois
    check_image_count(student.images, own * copies)
    return torch.cat([rois[:, :1] % own, rois[:, 1:]], 1)


class RegionView(LogitView):
    """What the views of RoI heads share: one Predictions for each stage, on the student's regions.

    The student's rows are heard in its own training step. The teacher pools the very same regions
    from its own features; its RPN and its samplers do not run.

    Attributes:
        unit: what a stage gives, for messages.
        heads: paths of the stages.
        rois: inputs of their extractors.
    """

    unit: str
    repeats = True

    def __init__(
        self,
        model: AnyModule,
        needs: Sequence[str],
        part: str,
        extractor: str,
        loss: str,
        layer: str,
    ) -> None:
        self.heads = paths_of(model.roi_head, part)
        self.outputs = [TapPoint(path) for path in self.heads]
        self.losses = [TapPoint(f'{path}.{loss}', source='input') for path in self.heads]
        extractors = paths_of(model.roi_head, extractor)
        self.rois = [TapPoint(path, source='input') for path in extractors]
        self.features = []
        if 'features' in needs:
            self.features = [TapPoint(f'{path}.{layer}', source='input') for path in self.heads]
        self.points = [*self.outputs, *self.losses, *self.rois, *self.features]
        self.pyramid = pyramid_point(model)
        self.stages = [self._spec(model.get_submodule(path), path) for path in self.heads]

    def _spec(self, head: AnyModule, path: str) -> HeadSpec:
        raise NotImplementedError

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.pyramid]

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return list(self.stages)

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if student is not None:
            return self._on_students_rois(recorder, student, pair)
        predictions: list[Predictions] = []
        for stage, path in enumerate(self.heads):
            outputs = recorder.raw(self.outputs[stage])
            if outputs:
                predictions.append(self._own(recorder, stage, outputs))
            elif predictions:  # a cascade stops where a stage had no RoI at all
                predictions.append(self._nothing(stage, predictions[-1]))
            else:
                raise TapError(
                    f'{path!r} was not called in this step, so there are no {self.unit} to distil.'
                )
        return predictions

    def _own(self, recorder: Recorder, stage: int, outputs: list) -> Predictions:
        """The student's rows of a stage, from what its head gave in each call."""
        raise NotImplementedError

    def _nothing(self, stage: int, before: Predictions) -> Predictions:
        """No rows, but with a gradient, in the form of those of the stage before."""
        raise NotImplementedError

    @torch.no_grad()
    def _on_students_rois(
        self, recorder: Recorder, student: list[Predictions], pair: PairContext
    ) -> list[Predictions]:
        if len(student) != len(self.heads):
            raise TapError(
                f'the student has {len(student)} stages of {self.unit} and the teacher '
                f'{len(self.heads)} ({", ".join(self.heads)}); they are compared one by one.'
            )
        maps = pyramid(recorder, self.pyramid)
        predictions = []
        for stage, own in enumerate(student):
            rois = rois_on(maps, own.handover, pair.copies)
            level = self._teach(recorder.model, stage, maps, rois, own.handover, pair)
            level.images = own.levels[0].images
            predictions.append(Predictions.of(self.stages[stage], [level]))
        return predictions

    def _teach(
        self,
        model: AnyModule,
        stage: int,
        maps: tuple[Tensor, ...],
        rois: Tensor,
        student: Any,
        pair: PairContext,
    ) -> Level:
        """The teacher's rows of the student's RoIs (R, 5).

        Args:
            model: the teacher.
            stage: of its head.
            maps: its features.
            rois: on these maps.
            student: what the student's view handed over.
            pair: what the term knows of both.
        """
        raise NotImplementedError
