"""Class logits of detectors whose queries are learnt proposals (Sparse R-CNN), matched by boxes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView, only_call, other_kind
from .loss_calls import loss_calls
from .predictions import ALIKE, Boxes, HeadSpec, Level, PairContext, Predictions
from .query import corners_in_pixels, reorder
from .regions import paths_of, pyramid, pyramid_point, rois_of


class ProposalQueryLogits(LogitView):
    """The class logits of every stage, (N, Q, 1, C), one Predictions for each.

    Serves Sparse R-CNN and QueryInst: a cascade whose regions are learnt and whose stages pass a
    vector for each on to the next. Labels are those that each stage's ``loss_cls`` gets. The
    teacher refines its own proposals, stage by stage, and its queries are brought into the
    student's order as those of DETR are (:class:`QueryLogits`), by classes and boxes.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        self.heads = paths_of(model.roi_head, 'bbox_head')
        self.outputs = [TapPoint(path) for path in self.heads]
        self.losses = [TapPoint(f'{path}.loss_cls', source='input') for path in self.heads]
        extractors = paths_of(model.roi_head, 'bbox_roi_extractor')
        self.rois = [TapPoint(path, source='input') for path in extractors]
        self.features = []
        if 'features' in needs:
            self.features = [TapPoint(f'{path}.fc_cls', source='input') for path in self.heads]
        self.points = [*self.outputs, *self.losses, *self.rois, *self.features]
        self.pyramid = pyramid_point(model)
        self.stages = [_spec(model.get_submodule(path), path) for path in self.heads]

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.pyramid]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        roi_head: Any = getattr(model, 'roi_head', None)
        forward = getattr(roi_head, '_bbox_forward', None)
        if forward is None or not isinstance(getattr(roi_head, 'bbox_head', None), nn.ModuleList):
            return False
        takes = list(inspect.signature(forward).parameters)
        return takes == ['stage', 'x', 'rois', 'object_feats', 'batch_img_metas'] and all(
            isinstance(getattr(head, name, None), nn.Module)
            for head in roi_head.bbox_head
            for name in ('fc_cls', 'loss_cls')
        )

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return list(self.stages)

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, ProposalQueryLogits):
            raise other_kind(models, 'refines learnt proposals')

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if student is None:
            return [self._own(recorder, data_samples, stage) for stage in range(len(self.heads))]
        predictions = self._refined(recorder, data_samples)
        reorder(predictions, student, pair.columns)
        return predictions

    def _own(self, recorder: Recorder, data_samples: Any, stage: int) -> Predictions:
        path = self.heads[stage]
        output = only_call(recorder, self.outputs[stage], 'cls_logits', 'cascades of queries')
        logits, deltas = output[:2]  # (N, Q, C), (N, Q, 4)
        rois = rois_of(recorder, self.rois[stage], logits.shape[:2].numel())
        coder = recorder.model.get_submodule(path).bbox_coder
        boxes = coder.decode(rois[:, 1:], deltas.detach().reshape(-1, 4))
        level = self._level(logits, getattr(boxes, 'tensor', boxes), data_samples)
        if recorder.model.training:
            level.labels, level.label_weights = self._targets(recorder, stage, logits)
        if self.features:
            ((args, _),) = recorder.raw(self.features[stage])
            level.features = args[0].reshape(*logits.shape[:2], -1)
        return Predictions.of(self.stages[stage], [level])

    def _targets(
        self, recorder: Recorder, stage: int, logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Labels and their weights, each (N, Q, 1)."""
        point, shape = self.losses[stage], (*logits.shape[:2], 1)
        calls = loss_calls(recorder, point)
        if len(calls) != 1 or calls[0].target.numel() != logits.shape[:2].numel():
            raise TapError(
                f'{point.path!r} was called {len(calls)} times in this step, with targets of '
                f'{[tuple(call.target.shape) for call in calls]}; the view reads heads that call '
                f'it once, with a label for each of {tuple(logits.shape[:2])} queries.'
            )
        weights = calls[0].weight
        return calls[0].target.reshape(shape), None if weights is None else weights.reshape(shape)

    def _refined(self, recorder: Recorder, data_samples: Any) -> list[Predictions]:
        """The teacher's own queries after each of its stages."""
        from mmdet.structures.bbox import bbox2roi

        model, maps = recorder.model, pyramid(recorder, self.pyramid)
        metas = [sample.metainfo for sample in data_samples]
        found = model.rpn_head.predict(maps, data_samples, rescale=False)
        features = torch.stack([one.pop('features') for one in found])
        proposals, predictions = [one.bboxes for one in found], []
        for stage, spec in enumerate(self.stages):
            result = model.roi_head._bbox_forward(stage, maps, bbox2roi(proposals), features, metas)
            features, proposals = result['object_feats'], result['detached_proposals']
            boxes = torch.cat([getattr(boxes, 'tensor', boxes) for boxes in proposals])
            level = self._level(result['cls_score'], boxes, data_samples)
            predictions.append(Predictions.of(spec, [level]))
        return predictions

    def _level(self, logits: Tensor, corners: Tensor, data_samples: Any) -> Level:
        """Logits (N, Q, C) with their boxes, corners (N Q, 4) in pixels."""
        sizes = [sample.img_shape[:2] for sample in data_samples]
        limits = corners.new_tensor([[w, h, w, h] for h, w in sizes])[:, None, None]
        boxes = corners.reshape(*logits.shape[:2], 1, 4) / limits
        boxes = boxes.clamp(0, 1)  # a teacher's are clipped to the image
        first, last = boxes[..., :2], boxes[..., 2:]
        raw = torch.cat([(first + last) / 2, last - first], dim=-1)
        coder = partial(corners_in_pixels, raw, data_samples)
        return Level(logits.unsqueeze(2), boxes=Boxes('cxcywh', raw, coder))


def _spec(head: AnyModule, path: str) -> HeadSpec:
    return HeadSpec(
        label=path,
        kind='query',
        activation='sigmoid' if getattr(head.loss_cls, 'use_sigmoid', False) else 'softmax',
        num_classes=head.num_classes,
        background=head.fc_cls.out_features > head.num_classes,
        feature_dim=head.fc_cls.in_features,
    )
