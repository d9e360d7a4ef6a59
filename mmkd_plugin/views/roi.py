"""Class logits of RoI heads: the teacher classifies the very RoIs that the student sampled.

Serves Faster and Mask R-CNN, Cascade R-CNN (one ``Predictions`` per stage) and what is built like
them. A student's RoI head runs as often as without distillation: its logits, labels and RoIs are
taken from the calls that its own training step makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.checks import widen
from ..taps import Recorder, TapError
from ..taps.foreign import AnyModule
from .base import LogitView
from .loss_calls import loss_calls
from .predictions import Boxes, HeadSpec, Level, PairContext, Predictions
from .regions import (
    Regions,
    RegionView,
    check_fused,
    fused_features,
    images_of,
    last_loss_call,
    pools_rois,
    rois_of,
    stage_arguments,
)


class RoILogits(RegionView):
    """Rows (1, R, 1, C) of the RoIs that the student sampled, for each stage of its RoI head.

    Labels, label weights and RoIs are what the student's own ``loss_cls`` and RoI extractor were
    given. The teacher classifies the same RoIs, with the semantic or global features that its
    head adds (HTC, SCNet). Boxes are those of each RoI's best foreground class.

    Where the loss has an activation of its own (Seesaw), logits are the logarithms of what it
    makes: a softmax gives the same probabilities back.
    """

    unit = 'RoIs'

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        super().__init__(model, needs, 'bbox_head', 'bbox_roi_extractor', 'loss_cls', 'fc_cls')

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

    def _spec(self, head: AnyModule, path: str) -> HeadSpec:
        columns, classes = head.fc_cls.out_features, head.num_classes
        if _has_own_activation(head):
            columns = classes + 1  # what it gives
        if columns not in (classes, classes + 1):
            raise TapError(
                f'{path!r} knows {classes} classes, but {type(head.loss_cls).__name__} gives '
                f"its fc_cls {columns} outputs; the view 'cls_logits' reads heads with an output "
                'for each class, and one for background. Use a softmax or sigmoid loss, or distil '
                'features.'
            )
        return HeadSpec(
            label=path,
            kind='roi',
            activation='sigmoid' if getattr(head.loss_cls, 'use_sigmoid', False) else 'softmax',
            num_classes=classes,
            background=columns == classes + 1,
            feature_dim=head.fc_cls.in_features,
        )

    @classmethod
    def gives_boxes(cls, model: AnyModule) -> bool:
        heads = model.roi_head.bbox_head
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        return all(hasattr(head, 'bbox_coder') and hasattr(head, 'fc_reg') for head in heads)

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, RoILogits):
            raise TapError(
                f'the teacher ({type(models[1]).__name__}) can classify RoIs, but the student '
                f"({type(models[0]).__name__}) samples none. Let the teacher's boxes speak "
                "instead: teacher='detections'."
            )
        check_fused(models[1], models[1].roi_head._bbox_forward)

    # -- the student's own ---------------------------------------------------------------------

    def _own(self, recorder: Recorder, stage: int, outputs: list) -> Predictions:
        own = self._own_call(recorder, stage, outputs)
        logits, deltas = outputs[own][:2]
        count = len(logits)
        rois = rois_of(recorder, self.rois[stage], count, last=len(outputs) > 1)
        level = self._level(recorder.model, stage, logits, deltas, rois)
        level.images = rois[None, :, 0].long()
        call = last_loss_call(recorder, self.losses[stage], count)
        if call is None and count:
            raise TapError(
                f'{self.losses[stage].path!r} was not given the {count} predictions of its head '
                'in this step, so their labels are not known.'
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
        regions = Regions(rois, images_of(recorder, self.rois[0]))
        return Predictions.of(self.stages[stage], [level], regions)

    def _own_call(self, recorder: Recorder, stage: int, outputs: list) -> int:
        """Which call of the box head was for its loss: samplers that look for hard regions (OHEM,
        PISA) call it, too."""
        losses = loss_calls(recorder, self.losses[stage])
        for i, output in enumerate(outputs):
            if losses and output[0] is losses[-1].pred:
                return i
        return len(outputs) - 1

    def _nothing(self, stage: int, before: Predictions) -> Predictions:
        (last,), rois = before.levels, before.handover.rois
        columns = self.stages[stage].columns
        assert last.labels is not None and last.images is not None
        level = Level(
            logits=last.logits.flatten()[:0].reshape(1, 0, 1, columns),
            labels=last.labels[:, :0],
            label_weights=rois[:0, 0][None, :, None],
            images=last.images[:, :0],
            anchors=rois[None, :0, None, 1:],
        )
        if last.boxes is not None:
            level.boxes = last.boxes.chosen(lambda x: x[:, :0])
        if last.features is not None:
            level.features = last.features[:, :0]
        regions = Regions(rois[:0], before.handover.images)
        return Predictions.of(self.stages[stage], [level], regions)

    # -- the teacher ---------------------------------------------------------------------------

    def _teach(
        self,
        model: AnyModule,
        stage: int,
        maps: tuple[Tensor, ...],
        rois: Tensor,
        student: Regions,
        pair: PairContext,
    ) -> Level:
        logits, deltas = maps[0].new_zeros((0, self.stages[stage].columns)), None
        if len(rois):
            forward = model.roi_head._bbox_forward
            more = fused_features(model.roi_head, forward, maps)
            result = forward(*stage_arguments(forward, stage), maps, rois, **more)
            logits, deltas = result['cls_score'], result['bbox_pred']
        return self._level(model, stage, logits, deltas, rois)

    # -- both ----------------------------------------------------------------------------------

    def _level(
        self, model: AnyModule, stage: int, logits: Tensor, deltas: Any, rois: Tensor
    ) -> Level:
        head, spec = model.get_submodule(self.heads[stage]), self.stages[stage]
        logits, boxes = activated(head, logits), None
        if isinstance(deltas, Tensor) and hasattr(head, 'bbox_coder'):
            boxes = _boxes(head, logits[:, : spec.num_classes], deltas, rois)
        return Level(logits=logits[None, :, None], boxes=boxes, anchors=rois[None, :, None, 1:])


def _classifies(head: AnyModule) -> bool:
    """Whether it is a box head with one classification layer and a loss that is a module."""
    layer = getattr(head, 'fc_cls', None)
    return (
        isinstance(layer, nn.Module)
        and hasattr(layer, 'out_features')
        and isinstance(getattr(head, 'loss_cls', None), nn.Module)
    )


def _has_own_activation(head: AnyModule) -> bool:
    """Whether the loss makes probabilities with a background in a way of its own (Seesaw)."""
    return getattr(head, 'custom_activation', False) and not head.loss_cls.use_sigmoid


def activated(head: AnyModule, logits: Tensor) -> Tensor:
    """Logits, of which a softmax makes what the head predicts where the loss has a way of its
    own: (R, C + 1)."""
    if not _has_own_activation(head):
        return logits
    probabilities = head.loss_cls.get_activation(widen(logits))
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _boxes(head: AnyModule, foreground: Tensor, deltas: Tensor, rois: Tensor) -> Boxes:
    """Box outputs of the best foreground class; a class-agnostic head has one for all."""
    size = head.bbox_coder.encode_size

    def of_class(classes: Tensor | None = None) -> Tensor:
        own = deltas
        if not head.reg_class_agnostic and len(own):
            index = foreground.detach().argmax(1) if classes is None else classes.flatten()
            own = own.reshape(len(own), -1, size)
            own = own.gather(1, index[:, None, None].expand(-1, 1, size))[:, 0]
        return own.reshape(1, -1, 1, size)

    def decode(classes: Tensor | None = None) -> Tensor:
        from mmdet.structures.bbox import get_box_tensor

        corners = head.bbox_coder.decode(rois[:, 1:], widen(of_class(classes)[0, :, 0]))
        return get_box_tensor(corners)[None, :, None]

    def boxes_of(classes: Tensor) -> Boxes:
        return Boxes('deltas', partial(of_class, classes), partial(decode, classes))

    return Boxes('deltas', of_class, decode, None if head.reg_class_agnostic else boxes_of)
