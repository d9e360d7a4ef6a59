"""How a teacher's detections are given to a student's rows, by the kind of the student's head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .assignment import assign, assign_objects, assign_regions
from .boxes import BoxRows, box_spec
from .class_forms import in_form
from .dense_geometry import ignored_boxes
from .detections_answers import boxes_of_masks
from .detections_found import TeacherDetections
from .predictions import Boxes, HeadSpec, Level, PairContext, Predictions
from .query import match_queries, pair_cost

Found = Sequence[TeacherDetections]
_APART = 1e7  # cost of a query and no detection: never taken where there is another


@dataclass(frozen=True)
class Table:
    """The detections of all images, one behind the other, each image followed by a row for none.

    Attributes:
        found: the detections of each image.
        columns: columns of student and teacher that mean the same; None for all.
        canvas: height and width of the batch's images, with padding.
        logits: class vectors in the form of the student's head (T, C).
        boxes: corners (T, 4) in pixels of the batch's images.
        scores: how sure the teacher is of an object (T,).
        real: False for the rows of none (T,).
        first: where each image begins (N,).
    """

    found: Found
    columns: tuple[Tensor, Tensor] | None
    canvas: tuple[int, int]
    logits: Tensor
    boxes: Tensor
    scores: Tensor
    real: Tensor
    first: Tensor

    @classmethod
    def of(
        cls,
        found: Found,
        form: HeadSpec,
        own: Predictions,
        pair: PairContext,
        canvas: tuple[int, int],
    ) -> Table:
        """From the detections of each image, in the ``form`` of the teacher's head, for rows such
        as the student's ``own``."""
        logits, boxes, scores, real = [], [], [], []
        for one in found:
            z = in_form(one.logits, form, own.activation, own.background)
            nothing = torch.zeros_like(z[:1]) if len(z) else z.new_zeros((1, z.shape[1]))
            logits.append(torch.cat([z, nothing]) + one.taint)
            boxes.append(torch.cat([one.boxes, one.boxes.new_zeros((1, 4))]) + one.taint)
            scores.append(torch.cat([one.scores, one.scores.new_zeros(1)]))
            real.append(torch.ones(len(one) + 1, dtype=torch.bool))
            real[-1][-1] = False
        counts = torch.tensor([0, *(len(one) + 1 for one in found)])
        device = boxes[0].device
        return cls(
            found,
            pair.columns,
            canvas,
            torch.cat(logits),
            torch.cat(boxes),
            torch.cat(scores),
            torch.cat(real).to(device, non_blocking=True),
            counts.cumsum(0)[:-1].to(device, non_blocking=True),
        )

    def level(self, index: Tensor, own: Level) -> Level:
        """The rows of an index (N, P, A), as the teacher's level for the student's."""
        valid = self.real[index]
        if own.valid is not None:
            valid = valid & own.valid
        boxes = Boxes('corners', lambda: self.boxes[index], lambda: self.boxes[index])
        return Level(
            logits=self.logits[index],
            valid=valid,
            score=self.scores[index],
            boxes=boxes,
            centers=own.centers,
            stride=own.stride,
            images=own.images,
        )


def rows_for(
    own: Sequence[Predictions],
    found: Found,
    form: HeadSpec,
    data_samples: Any,
    pair: PairContext,
) -> list[Predictions]:
    """The teacher's rows for each of the student's heads: class vectors, or boxes where those of
    the student are boxes.

    Args:
        own: the student's.
        found: the detections of each image.
        form: of their class vectors.
        data_samples: of the batch.
        pair: what the term knows of both.
    """
    of_boxes = isinstance(own[0].handover, BoxRows)
    heads = [head.handover.rows for head in own] if of_boxes else own
    kind, taught = own[0].kind, []
    meta = data_samples[0].metainfo
    canvas = meta.get('batch_input_shape', meta['img_shape'])[:2]
    if kind == 'query':
        found = [credible(one, sample) for one, sample in zip(found, data_samples)]
    table = Table.of(found, form, heads[0], pair, canvas)  # heads of one model are of one form
    for rows, head in zip(heads, own):
        spec = HeadSpec(
            label=f'detections of {form.label}',
            kind=kind,
            activation=rows.activation,
            num_classes=form.num_classes,
            background=rows.background,
        )
        indices = _objects(head, table) or ASSIGNERS[kind](rows, table)
        levels = [table.level(index, level) for index, level in zip(indices, rows.levels)]
        if of_boxes:
            spec = box_spec(spec)
            for level in levels:
                assert level.boxes is not None
                level.logits = level.boxes.decode()
        taught.append(Predictions.of(spec, levels))
    return taught


def _objects(own: Predictions, table: Table) -> list[Tensor]:
    """Rows whose object is known, of any kind of head: the detection of that object.

    Returns:
        Nothing where the objects were not asked for.
    """
    indices = []
    for level in own.levels:
        if level.truth is None:
            return []
        rows = level.truth.flatten(1, 2)  # (N, P A, 4)
        images = torch.arange(len(rows), device=rows.device)[:, None]
        if level.images is None:
            found = [table.found[i % len(table.found)] for i in range(len(rows))]
            parts = [assign_objects(x, one.boxes, one.scores) for x, one in zip(rows, found)]
            index = torch.stack(parts)
        else:  # the rows of all images behind one another
            images = level.images.repeat_interleave(level.truth.shape[2], 1)
            index = torch.zeros_like(images)
            for i, one in enumerate(table.found):
                part = assign_objects(rows.flatten(0, 1), one.boxes, one.scores)
                index = torch.where(images % len(table.found) == i, part.view_as(index), index)
        index = index + table.first[images % len(table.found)]
        indices.append(index.view(level.truth.shape[:3]))
    return indices


def _positions(own: Predictions, table: Table) -> list[Tensor]:
    """Positions of a dense head: the detection that contains the centre and overlaps most."""
    indices = []
    for level in own.levels:
        assert level.centers is not None
        boxes: Any = [None] * len(table.found)
        if level.boxes is not None:
            boxes = level.boxes.decode().detach().float()
        index = [assign(level.centers, b, one.boxes) for b, one in zip(boxes, table.found)]
        indices.append(torch.stack(index) + table.first[:, None, None])
    return indices


def _regions(own: Predictions, table: Table) -> list[Tensor]:
    """RoIs: the detection that overlaps most with the very region that the student classified."""
    rois = own.handover.rois
    rois = torch.cat([rois[:, :1] % len(table.found), rois[:, 1:]], dim=1)  # branch after branch
    index = assign_regions(rois, [one.boxes for one in table.found])
    return [(index + table.first[rois[:, 0].long()])[None, :, None]]


def _queries(own: Predictions, table: Table) -> list[Tensor]:
    """Queries: the one-to-one assignment of least cost, apart from that to the truth."""
    from torchvision.ops import box_convert  # comes with mmdet, not with a classifier

    (level,) = own.levels
    counts = [len(one) for one in table.found]
    most = max(1, *counts)
    ranks = torch.arange(most, device=table.first.device)
    limits = torch.tensor(counts).to(ranks.device, non_blocking=True)
    index = table.first[:, None] + torch.minimum(ranks, limits[:, None])  # (N, M)
    sizes = table.boxes.new_tensor([one.size[::-1] * 2 for one in table.found])[:, None]
    corners = [_query_boxes(own, table.canvas), table.boxes[index]]
    boxes = [box_convert(x / sizes, 'xyxy', 'cxcywh') for x in corners]
    logits = [level.logits.squeeze(2).detach(), table.logits[index]]
    cost = pair_cost(logits, boxes, own.activation, table.columns)
    absent = ~table.real[index]
    partner, matched = match_queries(cost.masked_fill(absent[:, None], _APART))
    partner = torch.where(matched, partner, -1)
    taken = torch.cat([index, (table.first + limits)[:, None]], dim=1)  # -1 is none
    return [taken.gather(1, partner.where(partner >= 0, most)).unsqueeze(2)]


def _query_boxes(own: Predictions, canvas: tuple[int, int]) -> Tensor:
    """Corners (N, Q, 4) of the student's queries in pixels; of those with a mask, those of it."""
    (level,) = own.levels
    if level.boxes is not None:
        return level.boxes.decode().squeeze(2).detach()
    masks: Tensor = own.handover
    boxes = boxes_of_masks(masks.flatten(0, 1) > 0).view(*masks.shape[:2], 4)
    height, width = masks.shape[-2:]
    return boxes * boxes.new_tensor([canvas[1] / width, canvas[0] / height] * 2)


def credible(found: TeacherDetections, sample: Any) -> TeacherDetections:
    """The detections that an image's truth leaves in question.

    Queries have no labels beside them that would say which detections are right. Where the truth
    says that an image holds nothing, none is; in an ignore region (COCO's crowds) none counts.
    """
    truth = getattr(sample, 'gt_instances', None)
    ignored = ignored_boxes(sample)
    keep = torch.ones_like(found.scores, dtype=torch.bool)
    if truth is not None and not len(truth):
        keep[:] = False
    elif ignored is not None and len(found):
        centers = (found.boxes[:, None, :2] + found.boxes[:, None, 2:]) / 2
        ignored = ignored.to(found.boxes)
        inside = (centers >= ignored[:, :2]) & (centers <= ignored[:, 2:])
        keep = ~inside.all(2).any(1)
    return found.at(keep)


ASSIGNERS: dict[str, Callable[[Predictions, Table], list[Tensor]]] = dict(
    dense=_positions, roi=_regions, query=_queries
)
