"""Class logits of query detectors (DETR and its descendants), matched by Hungarian assignment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..functional.checks import widen
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from ..taps.partial_forward import decodes_queries, reads_text
from .base import LogitView, only_call, other_kind
from .loss_calls import loss_calls
from .predictions import ALIKE, Boxes, HeadSpec, Level, PairContext, Predictions

# Weights of the three costs, those of Deformable DETR's and DINO's own matcher.
CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
_NEVER = 1e6  # cost of a pair with a NaN box: matched only when nothing else is left


class QueryLogits(LogitView):
    """The class logits of every decoder layer, (N, Q, 1, C), one Predictions for each.

    Serves MMDetection's DETR, Conditional and DAB-DETR, Deformable DETR (two-stage, too) and DINO.
    Labels are those of the student's own Hungarian matching to the ground truth, layer by layer.
    Denoising queries and the encoder's proposals are left out.

    Queries are unordered: the teacher's are brought into the student's order, for each layer and
    image, by the assignment of least cost. The cost is ``2 * class + 5 * L1 + 2 * GIoU``: the L1
    distance of the two class probability vectors, that of the two boxes (cx, cy, w, h in units of
    the image), and 1 - GIoU. The assignment runs on the CPU (SciPy), so that the step waits for
    the device once, as it does for the detector's own matching: with 900 queries, 6 layers and 2
    images for 0.2 s if the two models agree, up to 1.8 s if they do not at all. If the numbers of
    queries differ, the surplus is left out: student rows without a partner are not valid.

    With a class map the cost compares the classes that both know.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        head = model.bbox_head
        self.needs = tuple(needs)
        if hasattr(head, 'aux_cls_branches'):
            raise TapError(
                f'{type(head).__name__} trains a varying subset of its queries (distinct '
                "and dense ones), for which the view 'cls_logits' has no fixed rows. Distil "
                "features instead, such as student='neck'."
            )
        decoder = model.decoder
        self.layers = decoder.num_layers if getattr(decoder, 'return_intermediate', True) else 1
        self._specs = [
            HeadSpec(
                label=f'bbox_head decoder layer {layer}',
                kind='query',
                activation='sigmoid' if head.loss_cls.use_sigmoid else 'softmax',
                num_classes=head.num_classes,
                background=head.cls_out_channels > head.num_classes,
                feature_dim=head.embed_dims,
            )
            for layer in range(self.layers)
        ]
        self.outputs = TapPoint('bbox_head')
        self.inputs = TapPoint('bbox_head', source='input')
        self.losses = TapPoint('bbox_head.loss_cls', source='input')
        self.box_losses = TapPoint('bbox_head.loss_bbox', source='input')
        self.points = [self.outputs, self.losses]
        if 'truth' in self.needs:
            self.points.append(self.box_losses)
        if 'features' in self.needs:
            self.points.append(self.inputs)

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.outputs]

    @classmethod
    def gives_boxes(cls, model: AnyModule) -> bool:
        return hasattr(model.bbox_head, 'loss_bbox')

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, 'bbox_head', None)
        # A detector that reads text has a column for each token of its prompt, not a class.
        return decodes_queries(model) and hasattr(head, 'loss_cls') and not reads_text(model)

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return list(self._specs)

    def check_pair(self, student: LogitView, models: tuple[AnyModule, AnyModule]) -> None:
        if not isinstance(student, QueryLogits):
            raise other_kind(models, 'predicts a set of queries')

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        scores, boxes = self.outputs_of(recorder)
        # A teacher in eval has no denoising queries, and no loss.
        targets = [None] * self.layers if student else self._targets(recorder, scores.shape[1])
        hidden = None
        if 'features' in self.needs and not student:
            hidden = self._hidden_states(recorder)
        truth = None
        if 'truth' in self.needs and not student:
            truth = self._truth(recorder, data_samples)
        predictions = []
        for i, target in enumerate(targets):
            queries = scores.shape[2] if target is None else target[0].shape[1]
            # Denoising queries come first, in the outputs as in the head's own split of them.
            level = Level(scores[i, :, -queries:].unsqueeze(2))
            raw = boxes[i, :, -queries:].unsqueeze(2)
            level.boxes = Boxes('cxcywh', raw, partial(corners_in_pixels, raw, data_samples))
            if target is not None:
                level.labels, level.label_weights = target
            if truth is not None:
                level.truth = truth[i]
            if hidden is not None:
                level.features = hidden[i][:, -queries:]
            predictions.append(Predictions.of(self._specs[i], [level]))
        if student:
            reorder(predictions, student, pair.columns)
        return predictions

    def outputs_of(self, recorder: Recorder) -> tuple[Tensor, Tensor]:
        """Class logits and boxes (cx, cy, w, h) of all layers, (L, N, Q, C) and (L, N, Q, 4)."""
        scores, boxes = only_call(recorder, self.outputs, 'cls_logits', 'query detectors')[:2]
        if len(scores) != self.layers:
            raise TapError(
                f'bbox_head gave the logits of {len(scores)} decoder layers, but '
                f'the decoder was built with {self.layers}.'
            )
        return scores, boxes

    def _targets(self, recorder: Recorder, images: int) -> list[tuple[Tensor, Tensor | None]]:
        """Labels and their weights, each (N, Q, 1), of each decoder layer."""
        # The first calls are those of the decoder's layers; encoder and denoising queries follow.
        calls = loss_calls(recorder, self.losses)[: self.layers]
        if len(calls) < self.layers:
            raise TapError(
                f"'bbox_head.loss_cls' was called {len(calls)} times in this step, "
                f'but there are {self.layers} decoder layers to read labels for.'
            )
        targets = []
        for call in calls:
            labels = call.target[0] if isinstance(call.target, tuple) else call.target
            if labels.dim() != 1 or len(labels) % images:
                raise TapError(
                    f"'bbox_head.loss_cls' got labels of shape "
                    f'{tuple(labels.shape)} for {images} images; expected one per query of each.'
                )
            weights = call.weight
            if weights is not None:
                weights = weights.reshape(images, -1, 1)
            targets.append((labels.reshape(images, -1, 1), weights))
        return targets

    def _truth(self, recorder: Recorder, data_samples: Any) -> list[Tensor]:
        """Corners (N, Q, 1, 4) of the queries' objects, layer by layer."""
        calls = loss_calls(recorder, self.box_losses)[: self.layers]
        if len(calls) < self.layers:
            raise TapError(
                f"'bbox_head.loss_bbox' was called {len(calls)} times in this step, "
                f'but there are {self.layers} decoder layers to read boxes for.'
            )
        targets = [call.target.detach().reshape(len(data_samples), -1, 1, 4) for call in calls]
        return [corners_in_pixels(target, data_samples) for target in targets]

    def _hidden_states(self, recorder: Recorder) -> Tensor:
        """What the classification layers read, (L, N, Q, D)."""
        ((args, kwargs),) = recorder.raw(self.inputs)
        return args[0] if args else kwargs['hidden_states']


def corners_in_pixels(boxes: Tensor, data_samples: Any) -> Tensor:
    """Corner boxes (N, Q, 1, 4) in pixels, from those in units of each image."""
    sizes = [sample.img_shape[:2] for sample in data_samples]
    scale = widen(boxes).new_tensor([[w, h, w, h] for h, w in sizes])
    return corners(widen(boxes)) * scale[:, None, None]


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) given as cx, cy, w, h as x1, y1, x2, y2."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def reorder(
    teacher: list[Predictions],
    student: list[Predictions],
    columns: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Puts the teacher's queries, a level for each decoder layer, into the student's order, in
    place; ``columns`` of both mean the same, None for all.
    """
    pairs = [(s.levels[0], t.levels[0]) for s, t in zip(student, teacher)]
    with torch.no_grad():
        costs = torch.stack([matching_cost(s, t, teacher[0].activation, columns) for s, t in pairs])
    put_in_order([level for _, level in pairs], costs)


def put_in_order(levels: Sequence[Level], costs: Tensor) -> None:
    """Reorders the queries of the teacher's levels (N, T, 1, C), in place, by the assignment of
    least ``costs`` (levels, N, S, T)."""
    partner, matched = match_queries(costs)
    for level, index, found in zip(levels, partner, matched):
        level.valid = found.unsqueeze(-1)
        level.logits = _take(level.logits, index)
        if level.boxes is not None:
            level.boxes = level.boxes.chosen(partial(_take, index=index))


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (N, Q, ...) at ``index`` (N, S): (N, S, ...)."""
    images = torch.arange(len(rows), device=rows.device)[:, None]
    return rows[images, index]


def matching_cost(
    student: Level, teacher: Level, activation: str, columns: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Cost of every pair of a student's and a teacher's query.

    Args:
        student: level of logits (N, S, 1, C) and boxes (cx, cy, w, h) in units of the image.
        teacher: the same with T queries.
        activation: what makes probabilities of the logits.
        columns: columns of both that mean the same classes; None for all.

    Returns:
        Costs (N, S, T) in float32 or wider.
    """
    assert student.boxes is not None and teacher.boxes is not None
    logits = [level.logits.squeeze(2) for level in (student, teacher)]
    boxes = [boxes.raw.squeeze(2) for boxes in (student.boxes, teacher.boxes)]
    return pair_cost(logits, boxes, activation, columns)


def pair_cost(
    logits: Sequence[Tensor],
    boxes: Sequence[Tensor],
    activation: str,
    columns: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """As :func:`matching_cost`, of logits (N, S, C) and (N, T, C) and boxes (cx, cy, w, h) in units
    of the image, (N, S, 4) and (N, T, 4).
    """
    from mmdet.structures.bbox import bbox_overlaps

    wide = torch.promote_types(logits[0].dtype, torch.float32)
    logits = [x.to(wide) for x in logits]
    own, theirs = (x.to(wide) for x in boxes)
    overlap = bbox_overlaps(corners(own), corners(theirs), mode='giou')
    cost = L1_COST * torch.cdist(own, theirs, p=1) + GIOU_COST * (1 - overlap)
    return cost + class_cost(logits, activation, columns)


def class_cost(
    logits: Sequence[Tensor],
    activation: str,
    columns: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The part of the classes, (N, S, T): logits (N, S, C) and (N, T, C); 0 where the numbers of
    columns differ and none are known to mean the same."""
    if columns is None and logits[0].shape[-1] != logits[1].shape[-1]:
        return logits[0].new_zeros(())
    probabilities = [x.sigmoid() if activation == 'sigmoid' else x.softmax(dim=-1) for x in logits]
    if columns is not None:
        probabilities = [p[..., c] for p, c in zip(probabilities, columns)]
    return CLASS_COST * torch.cdist(probabilities[0], probabilities[1], p=1)


def match_queries(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Assignments (..., S) of least total ``costs`` (..., S, T); waits for the device once.

    Returns:
        For each of S the partner among T, 0 where there is none, and whether it has one.
    """
    from scipy.optimize import linear_sum_assignment  # comes with mmdet, not with a classifier

    flat = costs.flatten(0, -3)
    flat = flat.nan_to_num(nan=_NEVER, posinf=_NEVER, neginf=_NEVER).cpu()
    partner = torch.zeros(flat.shape[:2], dtype=torch.long)
    matched = torch.zeros(flat.shape[:2], dtype=torch.bool)
    for i, cost in enumerate(flat.numpy()):
        rows, partners = (torch.from_numpy(x) for x in linear_sum_assignment(cost))
        partner[i, rows] = partners
        matched[i, rows] = True
    shape = costs.shape[:-1]
    return partner.reshape(shape).to(costs.device), matched.reshape(shape).to(costs.device)
