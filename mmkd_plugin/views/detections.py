"""A teacher of any kind speaks through its boxes: for pairs whose heads have no rows in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView
from .boxes import ClassColumns, DecodedBoxes
from .detections_answers import Reader
from .detections_found import TeacherDetections, best_of
from .detections_masks import masks_for
from .detections_readers import mask_reader_of, reader_of, reads
from .detections_rows import ASSIGNERS, rows_for
from .predictions import ALIKE, PairContext, Predictions
from .rotated import refuse_angles


class Detections(LogitView):
    """The teacher's decoded predictions, given to the rows of a student of any kind.

    Whatever the teacher's head, it predicts boxes with a vector of class logits each: a RoI head
    for its own proposals, a dense head at its own positions, a DETR for its queries, Mask2Former
    for its masks; of others (SOLO, Sparse R-CNN) the final answers with label and score are read.
    The best 100 of an image, after an NMS within each class where one is needed, are its detections
    (:class:`TeacherDetections`); under a class_map only classes that the student shares count
    there. What they teach depends on the student's rows:

    - *Positions* of a dense head: of the detections that contain the centre of the position that
      with the highest IoU with the box which the student itself predicts there.
    - *RoIs*: the detection with the highest IoU with the region that the student sampled, of 0.5
      or more, for every stage.
    - *Queries*: the one-to-one assignment of least cost (as between two sets of queries), for every
      decoder layer, apart from the assignment to the truth. Detections in ignore regions and in
      images whose truth is empty are none.

    A student's view ``'boxes'`` gets their boxes in place of the class vectors. Rows are paired as
    above; but where the loss asks for the truth, a row that has an object is given what the teacher
    takes this object for: of the detections that overlap it, the one with the largest IoU times
    score.

    A student's view ``'mask_logits'`` gets their masks: each of its masks that of what the teacher
    takes the object for, if that overlaps the object's box by an IoU of 0.5 or more
    (:func:`~mmkd_plugin.views.detections_masks.masks_for`).

    A row with no detection is not valid. Class vectors come in the form of the student's head: a
    softmax's become the log odds of each class for sigmoids, which is exact; those of sigmoids
    become, for a softmax, the distribution of the class if at most one is there.

    A box with a NaN is no detection. A NaN in the teacher's features or class logits makes all
    rows of the image NaN, so that the step's finite check reports it.

    The teacher is read once in a step, however many terms ask for the same classes.

    Only a teacher can be viewed so. NMS and proposals give as many boxes as they find, and queries
    are matched on the CPU: the step waits for the device here, as it does for a two-stage student's
    own proposals and a DETR's own matching. The rows are a tensor of the size of the student's
    logits.
    """

    teacher_only = True
    # Near an object most boxed places are the student's background, and its labels know. Queries
    # are matched to detections apart from the truth, by which the loss chooses among them.
    default_select: dict[str, str] | None = dict(dense='positive', roi='positive')

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        self.reader: Reader = reader_of(model)
        self.spec = self.reader.spec
        self.columns: ClassColumns | None = None  # of a student whose boxes are taught
        self.classes: tuple[int, ...] | None = None  # the class_map, by which boxes are ranked

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        return reads(model)

    @property
    def points(self) -> list[TapPoint]:
        raise self._no_student()

    def _no_student(self) -> TapError:
        return TapError(
            "the view 'detections' is a teacher's; a student's rows come from its "
            "own head: student='cls_logits', teacher='detections'."
        )

    @property
    def teacher_points(self) -> list[TapPoint]:
        return self.reader.points

    def check_pair(
        self,
        student: LogitView,
        models: tuple[AnyModule, AnyModule],
        class_map: Sequence[int] | None = None,
    ) -> None:
        if isinstance(student, Detections):
            raise self._no_student()
        self.classes = None if class_map is None else tuple(class_map)
        spec, name = student.specs(models[0])[0], type(models[0]).__name__
        if isinstance(student, DecodedBoxes):
            self.default_select = None  # the loss knows which rows have a box to learn
            self.columns = None if class_map is None else ClassColumns(class_map)
        elif student.of_masks:
            self.reader, self.of_masks = mask_reader_of(models[1]), True
            return
        elif not student.of_classes:
            raise TapError(
                f'detections carry classes, boxes and masks, and the rows of the student ({name}, '
                f'{spec.label!r}) are something else. Take '
                "student='cls_logits', 'boxes' or 'mask_logits'."
            )
        if not student.boxed:
            raise TapError(
                f"'detections' are whole boxes, and the rows of the student ({name}, "
                f"{spec.label!r}) are corners. Take a teacher of the student's kind, or distil "
                'features.'
            )
        if spec.kind not in ASSIGNERS:
            raise TapError(
                "'detections' are given to the positions of a dense head, to RoIs and to queries; "
                f'the student ({name}, {spec.label!r}) has rows of the kind {spec.kind!r}.'
            )
        refuse_angles(models[0])

    def check_loss(self, loss: AnyModule) -> None:
        if loss.compares_rows:
            raise TapError(
                f"'detections' gives all positions in a box the same logits, and "
                f'{type(loss).__name__} would contrast copies of one row. Take KDLoss.'
            )

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        if data_samples is None:
            raise TapError(
                "'detections' need the sizes of the images, which this step did not "
                'tell: call the student with data_samples.'
            )
        with torch.no_grad():
            assert student is not None  # a student's view has no points to listen at
            if self.columns is not None:
                columns = self.columns.on(student[0].levels[0].logits.device)
                pair = replace(pair, columns=columns)
            shared = None if pair.columns is None else pair.columns[1]
            if shared is not None and student[0].background:
                shared = shared[:-1]
            found = recorder.once(
                ('detections', type(self.reader), self.of_masks, self.classes),
                lambda: self.detect(recorder, data_samples, shared),
            )
            if self.of_masks:
                return masks_for(student, found, pair)
            return rows_for(student, found, self.spec, data_samples, pair)

    def detect(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None = None
    ) -> list[TeacherDetections]:
        """The detections of each image, the best first; a box is ranked by the ``shared`` classes
        of the teacher, or all of them.
        """
        found = self.reader.read(recorder, data_samples, shared)
        sizes = [sample.img_shape[:2] for sample in data_samples]
        return [
            best_of(one, self.spec, size, shared, self.reader.iou)
            for one, size in zip(found, sizes)
        ]
