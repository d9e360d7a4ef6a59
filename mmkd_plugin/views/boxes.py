"""Decoded boxes of any head whose class logits have a view: rows of corners in place of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functional.checks import widen
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .assigned_truth import assigned_truth
from .base import LogitView, takes
from .predictions import ALIKE, HeadSpec, Level, PairContext, Predictions
from .registry import views
from .rotated import heads_with_angles
from .scores import class_scores


@dataclass(frozen=True)
class BoxRows:
    """What a student's view of boxes hands over to the teacher's.

    Attributes:
        rows: the student's class logits of these rows, with what they hand over.
        classes: the class that each box is of, (N, P, A) for each level, where the student's head
            predicts a box for each class; else None.
    """

    rows: Predictions
    classes: list[Tensor] | None


class ClassColumns:
    """Columns of student and teacher that are of the same class, for heads whose boxes are taught.

    Args:
        class_map: for each class of the student that of the teacher, or -1.
    """

    def __init__(self, class_map: Sequence[int]) -> None:
        shared = [i for i, other in enumerate(class_map) if other >= 0]
        self.columns = torch.tensor(shared), torch.tensor([class_map[i] for i in shared])

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The columns on a device, to which they move once."""
        if self.columns[0].device != device:
            self.columns = self.columns[0].to(device), self.columns[1].to(device)
        return self.columns


class DecodedBoxes(LogitView):
    """Corner boxes (N, P, A, 4) of the rows of ``cls_logits``, in pixels, by the head's own coder.

    The rows, and which row of the teacher belongs to which of the student, are those of the view
    that reads the class logits: equal positions and anchors of dense heads, the student's RoIs for
    each stage, matched queries for each decoder layer. A row that the student's head assigned to an
    object has label 0, others ``num_classes``, which is 4; its ``truth`` is that object's box. The
    ``score`` is that of the class logits.

    A RoI head with a box for each class gives the box of the assigned class; of rows without one
    that of the class which the student takes for the best. The teacher's box is of the same class.
    """

    rows_are = 'boxes'
    of_classes = False

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        cls = _reader(model)
        assert cls is not None  # it fits
        if 'features' in needs or 'labels' in needs:
            raise TapError(
                "the view 'boxes' gives boxes and their truth, no features or labels of classes. "
                "Take BoxDistillLoss, or student='cls_logits'."
            )
        self.wants_truth = 'truth' in needs
        self.inner: LogitView = cls(model, [name for name in needs if name == 'truth'])
        self.repeats = self.inner.repeats
        self.kind = self.inner.specs(model)[0].kind
        self.columns: ClassColumns | None = None  # for matching queries

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        return _reader(model) is not None

    @property
    def points(self) -> list[TapPoint]:
        return self.inner.points

    @property
    def teacher_points(self) -> list[TapPoint]:
        return self.inner.teacher_points

    def compares_classes(self, model: AnyModule) -> bool:
        """Whether rows are paired by class: queries are matched, regions have boxes of classes."""
        return self.kind != 'dense'

    def no_truth(self) -> str | None:
        return self.inner.no_truth()

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return [box_spec(spec) for spec in self.inner.specs(model)]

    def check_pair(
        self,
        student: LogitView,
        models: tuple[AnyModule, AnyModule],
        class_map: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(student, DecodedBoxes):
            raise TapError(
                f"the teacher's rows are boxes, those of the student ({type(models[0]).__name__}) "
                "are not. Name the same view on both sides: student='boxes'."
            )
        own, theirs = (v.inner.specs(m)[0] for v, m in zip((student, self), models))
        if self.compares_classes(models[1]):
            if class_map is None and own.num_classes != theirs.num_classes:
                raise TapError(
                    f'the student ({type(models[0]).__name__}) has {own.num_classes} classes and '
                    f'the teacher ({type(models[1]).__name__}) {theirs.num_classes}. Their boxes '
                    'are paired by class: take a teacher of the same classes, or say which they '
                    "share: teacher=dict(..., class_map='names') or a dict of names."
                )
            if class_map is not None:
                self.columns = ClassColumns(class_map)
        more = dict(class_map=class_map) if takes(self.inner.check_pair, 'class_map') else {}
        self.inner.check_pair(student.inner, models, **more)

    # -- one step ------------------------------------------------------------------------------

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if student is None:
            found = self.inner.read(recorder, data_samples)
            return [self._own(own, data_samples) for own in found]
        more = {}
        if takes(self.inner.read, 'pair'):
            columns = None
            if self.columns is not None:
                columns = self.columns.on(student[0].levels[0].logits.device)
            more['pair'] = PairContext(columns, pair.class_map, pair.copies, pair.images)
        rows = [own.handover.rows for own in student]
        found = self.inner.read(recorder, data_samples, student=rows, **more)
        return [
            self._theirs(theirs, own.handover, pair.class_map)
            for theirs, own in zip(found, student)
        ]

    def _own(self, rows: Predictions, data_samples: Any) -> Predictions:
        classes: list[Tensor] | None = None
        if self.kind == 'roi':  # only there are boxes of classes
            classes = [_classes(level, rows.num_classes) for level in rows.levels]
        levels = []
        for i, level in enumerate(rows.levels):
            made = self._level(rows, level, None if classes is None else classes[i])
            if level.labels is not None:
                positive = (level.labels >= 0) & (level.labels < rows.num_classes)
                made.labels = torch.where(positive, 0, made.logits.shape[3])
                made.label_weights = level.label_weights
                if self.wants_truth and made.truth is None and data_samples is not None:
                    made.truth = assigned_truth(level, made.logits.detach(), data_samples)
            levels.append(made)
        handover = BoxRows(rows, classes)
        return Predictions.of(box_spec(rows.spec), levels, handover, rows.no_labels)

    def _theirs(self, rows: Predictions, student: BoxRows, class_map: Tensor | None) -> Predictions:
        levels = []
        for i, level in enumerate(rows.levels):
            classes = None if student.classes is None else student.classes[i]
            known = None
            if classes is not None and class_map is not None:
                classes = class_map[classes]
                known = classes >= 0
                classes = classes.clamp(min=0)
            made = self._level(rows, level, classes)
            if known is not None:
                made.valid = known if made.valid is None else made.valid & known
            levels.append(made)
        return Predictions.of(box_spec(rows.spec), levels)

    def _level(self, rows: Predictions, level: Level, classes: Tensor | None) -> Level:
        boxes = level.boxes
        if boxes is None:
            raise TapError(
                f'the box outputs of {rows.label!r} were not found among its outputs. Tap a module '
                'path instead, or write a view for this head.'
            )
        if boxes.of_classes is not None and classes is not None:
            boxes = boxes.of_classes(classes)
        return Level(
            logits=widen(boxes.decode()),
            valid=level.valid,
            score=class_scores(level, rows),
            boxes=boxes,
            centers=level.centers,
            stride=level.stride,
            images=level.images,
            truth=level.truth,
        )


def box_spec(spec: HeadSpec) -> HeadSpec:
    """What the boxes of a head's rows are."""
    return HeadSpec(f'{spec.label} boxes', spec.kind, 'none', 4, priors=spec.priors)


def _reader(model: AnyModule) -> type[LogitView] | None:
    """The view that reads the class logits of a model, if it gives boxes, too."""
    if heads_with_angles(model):  # corners do not tell them
        return None
    for cls in views('cls_logits'):
        if cls.fits(model):
            return cls if cls.gives_boxes(model) else None
    return None


def _classes(level: Level, num_classes: int) -> Tensor:
    """The class that a row's box is of: the label, or the best one where it has none."""
    best = level.logits.detach()[..., :num_classes].argmax(-1)
    if level.labels is None:
        return best
    positive = (level.labels >= 0) & (level.labels < num_classes)
    return torch.where(positive, level.labels, best)
