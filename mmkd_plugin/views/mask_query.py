"""Class logits of queries that have a mask each (MaskFormer, Mask2Former), matched by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ..functional.checks import widen
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView, only_call, other_kind
from .loss_calls import loss_calls
from .predictions import ALIKE, HeadSpec, Level, PairContext, Predictions
from .query import class_cost, put_in_order
from .regions import pyramid, pyramid_point

HEADS = ('panoptic_head', 'decode_head')
MASK_COST = 5.0  # that of the masks in Mask2Former's own matcher; of the classes it is 2, as here
SIDE = 64  # masks are compared on a map of at most this height and width


class MaskQueryLogits(LogitView):
    """The class logits of every decoder layer, (N, Q, 1, C + 1), one Predictions for each.

    The last column is "no object". Labels are those of the student's own matching to the ground
    truth, layer by layer. The teacher's queries are brought into the student's order by the
    assignment of least cost, for each layer and image: ``2 * class + 5 * mask``. Class is the L1
    distance of the two probability vectors. Mask is the sum of the absolute differences of the two
    masks' probabilities over the sum of both, from 0 for equal masks to 1 for those that share
    nothing. The assignment runs on the CPU, and waits for the device once.

    The teacher's head runs once more on its own features; these are all that its forward computes.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        self.path = _path(model)
        head = getattr(model, self.path)
        if 'features' in needs:
            raise TapError(
                f'the loss trains a classifier on features, which the queries of '
                f'{type(head).__name__} do not tell. Use KDLoss.'
            )
        # One with learnt features of its queries predicts before its first layer, too.
        self.layers = len(head.transformer_decoder.layers) + hasattr(head, 'query_feat')
        self.stages = [
            HeadSpec(
                label=f'{self.path} decoder layer {layer}',
                kind='query',
                activation='sigmoid' if head.loss_cls.use_sigmoid else 'softmax',
                num_classes=head.num_classes,
                background=head.cls_embed.out_features > head.num_classes,
            )
            for layer in range(self.layers)
        ]
        self.outputs = TapPoint(self.path)
        self.losses = TapPoint(f'{self.path}.loss_cls', source='input')
        self.points = [self.outputs, self.losses]
        self.pyramid = pyramid_point(model)

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.pyramid]

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        return _path(model) != ''

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return list(self.stages)

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, MaskQueryLogits):
            raise other_kind(models, 'predicts a set of masks')

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if student is not None:
            return self._in_order(recorder, data_samples, student, pair)
        outputs = only_call(recorder, self.outputs, 'cls_logits', 'heads of masks')
        predictions = self._predictions(*outputs[:2])
        if recorder.model.training:
            calls = loss_calls(recorder, self.losses)[: self.layers]
            for own, call in zip(predictions, calls):
                shape = (*own.levels[0].logits.shape[:2], 1)
                own.levels[0].labels = call.target.reshape(shape)
                if call.weight is not None:
                    own.levels[0].label_weights = call.weight.reshape(shape)
        return predictions

    def _in_order(
        self, recorder: Recorder, data_samples: Any, student: list[Predictions], pair: PairContext
    ) -> list[Predictions]:
        maps = pyramid(recorder, self.pyramid)
        head = getattr(recorder.model, self.path)
        predictions = self._predictions(*head(maps, data_samples)[:2])
        costs = []
        for own, theirs in zip(student, predictions):
            logits = [widen(p.levels[0].logits.detach().squeeze(2)) for p in (own, theirs)]
            cost = class_cost(logits, own.activation, pair.columns)
            costs.append(cost + MASK_COST * mask_distance(own.handover, theirs.handover))
        put_in_order([theirs.levels[0] for theirs in predictions], torch.stack(costs))
        return predictions

    def _predictions(self, logits: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Predictions]:
        """One for each layer, from logits (N, Q, C + 1) and mask logits (N, Q, h, w) of each."""
        if len(logits) != self.layers:
            raise TapError(
                f'{self.path!r} gave the logits of {len(logits)} decoder layers, but its decoder '
                f'was built with {self.layers}.'
            )
        return [
            Predictions.of(spec, [Level(one.unsqueeze(2))], handover=mask.detach())
            for spec, one, mask in zip(self.stages, logits, masks)
        ]


def mask_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How different the masks of each pair of queries are, from 0 to 1, (N, S, T).

    Args:
        student: mask logits (N, S, h, w).
        teacher: mask logits (N, T, H, W) of the same images.
    """
    size = (min(student.shape[-2], SIDE), min(student.shape[-1], SIDE))
    own, theirs = (
        nnf.adaptive_avg_pool2d(widen(masks).sigmoid(), size).flatten(2)
        for masks in (student, teacher)
    )
    both = own.sum(-1)[:, :, None] + theirs.sum(-1)[:, None]
    return torch.cdist(own, theirs, p=1) / both.clamp(min=torch.finfo(both.dtype).tiny)


def _path(model: AnyModule) -> str:
    """Where a head is that gives a class and a mask for each query; empty if nowhere."""
    parts = ('cls_embed', 'mask_embed', 'loss_cls', 'transformer_decoder')
    for path in HEADS:
        head = getattr(model, path, None)
        if all(isinstance(getattr(head, part, None), nn.Module) for part in parts):
            return path
    return ''
