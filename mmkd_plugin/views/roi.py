"""Class logits of RoI heads: the teacher classifies the very RoIs that the student sampled.

Serves Faster and Mask R-CNN, Cascade R-CNN (one ``Predictions`` per stage) and what is built like
them. A student's RoI head runs as often as without distillation: its logits, labels and RoIs are
taken from the calls that its own training step makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView
from .loss_calls import loss_calls
from .predictions import ALIKE, Boxes, HeadSpec, Level, PairContext, Predictions
from .regions import (
    Regions,
    check_stages,
    images_of,
    last_loss_call,
    paths_of,
    pools_rois,
    pyramid,
    pyramid_point,
    refuse_fused,
    rois_of,
    rois_on,
    stage_arguments,
)


class RoILogits(LogitView):
    """Rows (1, R, 1, C) of the RoIs that the student sampled, for each stage of its RoI head.

    Labels, label weights and RoIs are what the student's own ``loss_cls`` and RoI extractor were
    given. The teacher pools the same RoIs from its own features and classifies them; its RPN and
    its samplers do not run. Boxes are those of each RoI's best foreground class.
    """

    repeats = True

    def __init__(self, model: AnyModule, needs: Sequence[str], where: str) -> None:
        self.where = where
        self.heads = paths_of(model.roi_head, 'bbox_head')
        extractors = paths_of(model.roi_head, 'bbox_roi_extractor')
        self.outputs = [TapPoint(path) for path in self.heads]
        self.losses = [TapPoint(f'{path}.loss_cls', source='input') for path in self.heads]
        self.rois = [TapPoint(path, source='input') for path in extractors]
        self.features = []
        if 'features' in needs:
            self.features = [TapPoint(f'{path}.fc_cls', source='input') for path in self.heads]
        self.points = [*self.outputs, *self.losses, *self.rois, *self.features]
        self.pyramid = pyramid_point(model)
        self._specs = [_spec(model.get_submodule(path), path) for path in self.heads]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        roi_head = getattr(model, 'roi_head', None)
        if not isinstance(roi_head, nn.Module) or not pools_rois(
            getattr(roi_head, '_bbox_forward', None)
        ):
            return False
        parts = [getattr(roi_head, name, None) for name in ('bbox_head', 'bbox_roi_extractor')]
        if not all(isinstance(part, nn.Module) for part in parts):
            return False
        heads = parts[0] if isinstance(parts[0], nn.ModuleList) else [parts[0]]
        return all(_classifies(head) for head in heads)

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.pyramid]

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return list(self._specs)

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, RoILogits):
            raise TapError(
                f'{self.where}: the teacher ({type(models[1]).__name__}) can classify RoIs, but '
                f"the student ({type(models[0]).__name__}) samples none. Let the teacher's boxes "
                "speak instead: teacher='detections'."
            )
        refuse_fused(models[1], self.where)

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if student is not None:
            return self._of_students_rois(recorder, student, pair.copies)
        predictions: list[Predictions] = []
        images = images_of(recorder, self.rois[0])
        for spec in self._specs:
            level, rois = self._sampled(recorder, len(predictions), predictions)
            predictions.append(Predictions.of(spec, [level], Regions(rois, images)))
        return predictions

    # -- the student's own ---------------------------------------------------------------------

    def _sampled(
        self, recorder: Recorder, stage: int, before: list[Predictions]
    ) -> tuple[Level, Tensor]:
        """The level of a stage, and its RoIs (R, 5)."""
        outputs = recorder.raw(self.outputs[stage])
        if not outputs and before:  # a cascade stops where a stage had no RoI at all
            return self._nothing(stage, before[-1])
        if not outputs:
            raise TapError(
                f'{self.where}: {self.heads[stage]!r} was not called in this step, so there are no '
                'RoIs to distil.'
            )
        own = self._own_call(recorder, stage, outputs)
        logits, deltas = outputs[own][:2]
        count = len(logits)
        rois = rois_of(recorder, self.rois[stage], count, last=len(outputs) > 1)
        level = self._level(recorder.model, stage, logits, deltas, rois)
        level.images = rois[None, :, 0].long()
        call = last_loss_call(recorder, self.losses[stage], count)
        if call is None and count:
            raise TapError(
                f'{self.where}: {self.losses[stage].path!r} was not given the {count} predictions '
                'of its head in this step, so their labels are not known.'
            )
        if call is None:  # a head does not call its loss for no rows
            level.labels = rois.new_zeros((1, 0, 1), dtype=torch.long)
            level.label_weights = rois.new_zeros((1, 0, 1))
        else:
            level.labels = call.target.detach()[None, :, None]
            if call.weight is not None:
                level.label_weights = call.weight.detach()[None, :, None]
        if self.features:
            args, _ = recorder.raw(self.features[stage])[own]
            level.features = args[0][None]
        return level, rois

    def _own_call(self, recorder: Recorder, stage: int, outputs: list) -> int:
        """Which call of the box head was for its loss: samplers that look for hard regions (OHEM,
        PISA) call it, too."""
        losses = loss_calls(recorder, self.losses[stage])
        for i, output in enumerate(outputs):
            if losses and output[0] is losses[-1].pred:
                return i
        return len(outputs) - 1

    def _nothing(self, stage: int, before: Predictions) -> tuple[Level, Tensor]:
        """No rows, but with a gradient, in the form of others."""
        (last,), rois = before.levels, before.handover.rois
        columns = self._specs[stage].columns
        assert last.labels is not None and last.images is not None
        level = Level(
            logits=last.logits.flatten()[:0].reshape(1, 0, 1, columns),
            labels=last.labels[:, :0],
            label_weights=rois[:0, 0][None, :, None],
            images=last.images[:, :0],
        )
        if last.features is not None:
            level.features = last.features[:, :0]
        return level, rois[:0]

    # -- the teacher ---------------------------------------------------------------------------

    @torch.no_grad()
    def _of_students_rois(
        self, recorder: Recorder, student: list[Predictions], copies: int
    ) -> list[Predictions]:
        check_stages(student, self.heads, 'RoIs', self.where)
        maps = pyramid(recorder, self.pyramid)
        predictions = []
        for stage, own in enumerate(student):
            rois = rois_on(maps, own.handover, copies, self.where)
            logits, deltas = self._classify(recorder.model, stage, maps, rois)
            level = self._level(recorder.model, stage, logits, deltas, rois)
            level.images = own.levels[0].images
            predictions.append(Predictions.of(self._specs[stage], [level]))
        return predictions

    def _classify(
        self, model: AnyModule, stage: int, maps: tuple[Tensor, ...], rois: Tensor
    ) -> tuple[Tensor, Any]:
        """Class logits (R, C) and box outputs of any RoIs (R, 5), by the model's own head."""
        if not len(rois):
            return maps[0].new_zeros((0, self._specs[stage].columns)), None
        forward = model.roi_head._bbox_forward
        result = forward(*stage_arguments(forward, stage), maps, rois)
        return result['cls_score'], result['bbox_pred']

    # -- both ----------------------------------------------------------------------------------

    def _level(
        self, model: AnyModule, stage: int, logits: Tensor, deltas: Any, rois: Tensor
    ) -> Level:
        head, spec = model.get_submodule(self.heads[stage]), self._specs[stage]
        boxes = None
        if isinstance(deltas, Tensor) and hasattr(head, 'bbox_coder'):
            boxes = _boxes(head, logits[:, : spec.num_classes], deltas, rois)
        return Level(logits=logits[None, :, None], boxes=boxes)


def _classifies(head: AnyModule) -> bool:
    """Whether it is a box head with one classification layer and a loss that is a module."""
    layer = getattr(head, 'fc_cls', None)
    return (
        isinstance(layer, nn.Module)
        and hasattr(layer, 'out_features')
        and isinstance(getattr(head, 'loss_cls', None), nn.Module)
    )


def _spec(head: AnyModule, path: str) -> HeadSpec:
    columns, classes = head.fc_cls.out_features, head.num_classes
    if columns not in (classes, classes + 1):
        raise TapError(
            f'{path!r} knows {classes} classes, but {type(head.loss_cls).__name__} gives '
            f"its fc_cls {columns} outputs; the view 'cls_logits' reads heads with an output for "
            'each class, and one for background. Use a softmax or sigmoid loss, or distil features.'
        )
    return HeadSpec(
        label=path,
        kind='roi',
        activation='sigmoid' if getattr(head.loss_cls, 'use_sigmoid', False) else 'softmax',
        num_classes=classes,
        background=columns == classes + 1,
        feature_dim=head.fc_cls.in_features,
    )


def _boxes(head: AnyModule, foreground: Tensor, deltas: Tensor, rois: Tensor) -> Boxes:
    """Box outputs of the best foreground class; a class-agnostic head has one for all."""
    size = head.bbox_coder.encode_size
    if not head.reg_class_agnostic and len(deltas):
        best = foreground.detach().argmax(1)
        deltas = deltas.reshape(len(deltas), -1, size)
        deltas = deltas.gather(1, best[:, None, None].expand(-1, 1, size))[:, 0]
    deltas = deltas.reshape(-1, size)

    def decode() -> Tensor:
        from mmdet.structures.bbox import get_box_tensor

        corners = get_box_tensor(head.bbox_coder.decode(rois[:, 1:], deltas))
        return corners[None, :, None]

    return Boxes('deltas', deltas[None, :, None], decode)
