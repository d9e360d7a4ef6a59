"""What a model says of labelled images: one reading for each, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..views.detections_answers import boxes_of_masks

IOU = 0.5  # from which on a box is on an object
NOTHING = -1  # said of an object: no box on it, or a class that the student does not have
_SIDE = 256  # pixels of a map of classes are thinned out to about so many


@dataclass
class Objects:
    """Labelled objects, a row for each: boxes, images, or the area of one class in an image.

    Attributes:
        label: true classes, (K,).
        said: what the model calls them, (K,); -1 for nothing.
        score: from 0 to 1, (K,): its probability of the true class; of boxes times the IoU.
        found: the same of any class, (K,).
        iou: of box or area, (K,); NaN where nothing is on the object.
    """

    label: np.ndarray
    said: np.ndarray
    score: np.ndarray
    found: np.ndarray
    iou: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether the class is right, (K,) bool."""
        return self.label == self.said


class Reading:
    """Of one image."""

    def objects(self, truth: Any = None) -> Objects:
        """The image's objects as they were read.

        Args:
            truth: a reading of another image, whose truth is taken in place of its own.
        """
        raise NotImplementedError

    def renamed(self, names: np.ndarray) -> Reading:
        """With classes of the teacher as the student's.

        Args:
            names: the student's class, or -1, for each of the teacher's.
        """
        raise NotImplementedError


@dataclass
class ImageReading(Reading):
    """Of an image with one class: probabilities (C,) and the label."""

    scores: np.ndarray
    label: int

    def objects(self, truth: Any = None) -> Objects:
        label = np.array([self.label if truth is None else truth.label])
        known = label[0] < len(self.scores)
        score = self.scores[label] if known else np.zeros(1)
        said = np.array([int(self.scores.argmax())])
        return Objects(label, said, score, score, np.full(1, np.nan))

    def renamed(self, names: np.ndarray) -> ImageReading:
        scores = np.zeros(int(names.max()) + 1)
        for theirs, own in enumerate(names[: len(self.scores)]):
            if own != NOTHING:
                scores[own] += self.scores[theirs]
        return ImageReading(scores, self.label)


@dataclass
class BoxReading(Reading):
    """Of an image with boxes.

    Attributes:
        boxes: corners (M, 4) of what was found.
        scores: (M,).
        labels: (M,).
        true_boxes: corners (G, 4), in the same frame.
        true_labels: (G,).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    true_boxes: np.ndarray
    true_labels: np.ndarray

    def objects(self, truth: Any = None) -> Objects:
        truth = self if truth is None else truth
        labels = truth.true_labels
        if not len(labels):
            return _no_objects()
        overlaps = _overlaps(truth.true_boxes, self.boxes)
        sure = np.where(overlaps >= IOU, overlaps * self.scores, 0.0)  # (G, M)
        same = labels[:, None] == self.labels
        best = _last_max(np.where(overlaps >= IOU, self.scores, 0.0))
        on = best >= 0
        rows = np.arange(len(labels))
        said, iou = np.full(len(labels), NOTHING), np.full(len(labels), np.nan)
        said[on], iou[on] = self.labels[best[on]], overlaps[rows[on], best[on]]
        score = np.where(same, sure, 0.0).max(1, initial=0.0)
        return Objects(labels, said, score, sure.max(1, initial=0.0), iou)

    def renamed(self, names: np.ndarray) -> BoxReading:
        known = self.labels < len(names)
        labels = np.where(known, names[np.minimum(self.labels, len(names) - 1)], NOTHING)
        return BoxReading(self.boxes, self.scores, labels, self.true_boxes, self.true_labels)


@dataclass
class MapReading(Reading):
    """Of an image with a class for each pixel: maps (H, W) of what was said and of the truth."""

    said: np.ndarray
    truth: np.ndarray
    ignored: int = 255

    def objects(self, truth: Any = None) -> Objects:
        true = self.truth if truth is None else truth.truth
        if true.shape != self.said.shape:
            return _no_objects()
        labels = np.unique(true)
        labels = labels[labels != self.ignored]
        rows = [self._area(true, label) for label in labels]
        if not rows:
            return _no_objects()
        said, score, iou = (np.array(column) for column in zip(*rows))
        return Objects(labels.astype(int), said.astype(int), score, score, iou)

    def _area(self, true: np.ndarray, label: int) -> tuple[int, float, float]:
        """What most pixels of a class are called, which share is right, and the IoU."""
        inside = true == label
        values, counts = np.unique(self.said[inside], return_counts=True)
        right = (self.said == label) & inside
        union = ((self.said == label) & (true != self.ignored)) | inside
        return int(values[counts.argmax()]), right.sum() / inside.sum(), right.sum() / union.sum()

    def renamed(self, names: np.ndarray) -> MapReading:
        known = self.said < len(names)
        said = np.where(known, names[np.minimum(self.said, len(names) - 1)], NOTHING)
        return MapReading(said, self.truth, self.ignored)


def _no_objects() -> Objects:
    none = np.zeros(0)
    return Objects(none.astype(int), none.astype(int), none, none, none)


def _last_max(values: np.ndarray) -> np.ndarray:
    """Column of the largest positive value of each row; -1 without one."""
    if not values.shape[1]:
        return np.full(len(values), -1)
    return np.where(values.max(1) > 0, values.argmax(1), -1)


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of corner boxes, (G, 4) and (M, 4): (G, M)."""
    from torchvision.ops import box_iou

    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    return box_iou(torch.as_tensor(first), torch.as_tensor(second)).double().numpy()


# -- from what models return ----------------------------------------------------------------------


def read_outputs(outputs: Any, samples: Any, in_input_frame: bool = False) -> list[Reading]:
    """One reading for each image of a batch; none where labels or answers are missing.

    Args:
        outputs: what the model returned with ``mode='predict'``.
        samples: the data samples of the batch.
        in_input_frame: whether true boxes are those of the resized image; boxes that are found are
            in the frame of the file.
    """
    if isinstance(outputs, Sequence) and len(outputs) == 1 and isinstance(outputs[0], dict):
        return _of_batch(outputs[0])
    if not isinstance(outputs, Sequence) or not isinstance(samples, Sequence):
        return []
    found = [_of_sample(o, s, in_input_frame) for o, s in zip(outputs, samples)]
    return [reading for reading in found if reading is not None]


def _of_batch(output: dict) -> list[Reading]:
    scores, labels = output.get('pred_score'), output.get('gt_label')
    if scores is None or labels is None:
        return []
    return [
        ImageReading(row, int(label)) for row, label in zip(_array(scores), _array(labels, int))
    ]


def _of_sample(output: Any, sample: Any, in_input_frame: bool) -> Reading | None:
    label = getattr(sample, 'gt_label', None)
    scores = output if isinstance(output, Tensor) else getattr(output, 'pred_score', None)
    if label is not None and scores is not None:
        labels = _array(torch.as_tensor(label), int).reshape(-1)
        return ImageReading(_array(scores), int(labels[0])) if len(labels) == 1 else None
    if getattr(output, 'pred_sem_seg', None) is not None and hasattr(sample, 'gt_sem_seg'):
        return _maps(output.pred_sem_seg, sample)
    if getattr(output, 'pred_instances', None) is not None:
        return _boxes(output.pred_instances, sample, in_input_frame)
    return None


def _maps(found: Any, sample: Any) -> MapReading:
    said, true = (
        _array(getattr(x, 'data', getattr(x, 'sem_seg', None)), int).squeeze()
        for x in (found, sample.gt_sem_seg)
    )
    step = max(1, min(said.shape) // _SIDE)
    ignored = sample.metainfo.get('ignore_index', 255)
    return MapReading(said[::step, ::step], true[::step, ::step], ignored)


def _boxes(found: Any, sample: Any, in_input_frame: bool) -> BoxReading | None:
    true = getattr(sample, 'gt_instances', None)
    if true is None or 'bboxes' not in true or 'bboxes' not in found:
        return None
    boxes: np.ndarray = _array(getattr(true.bboxes, 'tensor', true.bboxes)).reshape(-1, 4)
    scale = sample.metainfo.get('scale_factor')
    if in_input_frame and scale is not None:
        boxes = boxes / np.tile(np.asarray(scale, dtype=np.float64)[:2], 2)
    return BoxReading(
        _found_boxes(found),
        _array(found.scores),
        _array(found.labels, int),
        boxes,
        _array(true.labels, int),
    )


def _found_boxes(found: Any) -> np.ndarray:
    """Corners (M, 4). Heads that find masks alone (SOLO) give boxes of size 0 with them."""
    boxes: np.ndarray = _array(getattr(found.bboxes, 'tensor', found.bboxes)).reshape(-1, 4)
    if boxes.any() or 'masks' not in found:
        return boxes
    return _array(boxes_of_masks(torch.as_tensor(found.masks).bool()))


def _array(value: Any, dtype: type = float) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value).astype(dtype)


# -- of many images -------------------------------------------------------------------------------


def all_objects(readings: Sequence[Reading]) -> Objects:
    """The objects of all images."""
    parts = [reading.objects() for reading in readings] or [_no_objects()]
    names = ('label', 'said', 'score', 'found', 'iou')
    return Objects(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def image_scores(readings: Sequence[Reading], of_classes: bool = True) -> np.ndarray:
    """Mean score of the objects of each image, (N,); NaN for images without any.

    Args:
        readings: one for each image.
        of_classes: of the true class, or of any.
    """
    values = []
    for reading in readings:
        objects = reading.objects()
        scores = objects.score if of_classes else objects.found
        values.append(scores.mean() if len(scores) else np.nan)
    return np.array(values)
