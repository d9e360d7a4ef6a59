"""COCO's average precision, on all images at once or on many sets of images that are drawn.

Detections are matched once, image by image, by pycocotools. A set of images is a vector that says
how often each image is in it, and the curves of all sets are accumulated together.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .objects import Objects

SIZES = {'all': 'all', 's': 'small', 'm': 'medium', 'l': 'large'}  # as metrics are called
_RECALLS = np.linspace(0.0, 1.0, 101)  # at which COCO reads precision
_CHUNK = 1 << 22  # numbers in one temporary array


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, best score first, for A sizes and T thresholds of IoU.

    Attributes:
        image: (D,) image of each detection.
        score: (D,).
        rank: (D,) its place among the detections of its class and image.
        hit: (A, T, D) whether it found an object.
        ignored: (A, T, D) whether it counts neither as right nor as wrong.
        positives: (A, N) objects to be found in each image.
    """

    image: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class Matches:
    """What matching found, class by class.

    Attributes:
        classes: one entry for each class.
        thresholds: (T,) of the IoU.
        images: number of images.
    """

    classes: list[ClassMatches]
    thresholds: np.ndarray
    images: int


def match(
    truth: Objects,
    found: Objects,
    image_ids: Sequence[int],
    classes: int,
    kind: str = 'bbox',
    thresholds: Sequence[float] | None = None,
    most: int = 1000,
) -> Matches:
    """Matches detections to objects as COCO does.

    Args:
        truth: labelled objects.
        found: detected objects.
        image_ids: the id of each image, which orders detections of equal scores.
        classes: number of classes.
        kind: ``'bbox'`` or ``'segm'``.
        thresholds: of the IoU; by default 0.5, 0.55 ... 0.95.
        most: detections of an image and class that are looked at, best first.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        sides = []
        for objects in (truth, found):
            side = COCO()
            side.dataset = _dataset(objects, image_ids, classes, kind)
            side.createIndex()
            sides.append(side)
        measured = COCOeval(*sides, kind)
        measured.params.maxDets = [most]
        if thresholds is not None:
            measured.params.iouThrs = np.asarray(thresholds)
        measured.evaluate()
    return _gathered(measured, list(image_ids), classes)


def _dataset(objects: Objects, image_ids: Sequence[int], classes: int, kind: str) -> dict:
    """A data set of COCO with these objects; their ids begin at 1, as 0 stands for no match."""
    annotations = []
    for index in range(len(objects)):
        entry = dict(
            id=index + 1,
            image_id=image_ids[objects.image[index]],
            category_id=int(objects.label[index]),
            bbox=objects.box[index].tolist(),
            area=float(objects.area[index]),
            iscrowd=int(objects.crowd[index]),
            score=float(objects.score[index]),
        )
        if kind == 'segm' and objects.mask is not None:
            entry['segmentation'] = objects.mask[index]
        annotations.append(entry)
    return dict(
        images=[dict(id=image, height=0, width=0) for image in image_ids],  # of masks: not read
        annotations=annotations,
        categories=[dict(id=number) for number in range(classes)],
    )


def _gathered(measured: Any, image_ids: list, classes: int) -> Matches:
    """Puts what COCOeval says of each class, size and image into arrays of each class."""
    params = measured.params
    place = {image: index for index, image in enumerate(image_ids)}
    order = [place[image] for image in params.imgIds]
    sizes, images, thresholds = len(params.areaRng), len(order), len(params.iouThrs)
    found = []
    for number in range(classes):
        positives = np.zeros((sizes, images), np.int64)
        parts: list[list[dict]] = [[] for _ in range(sizes)]
        owner: list[np.ndarray] = []
        for size in range(sizes):
            begin = (number * sizes + size) * images
            for image, entry in zip(order, measured.evalImgs[begin : begin + images]):
                if entry is None:
                    continue
                positives[size, image] = np.sum(np.asarray(entry['gtIgnore']) == 0)
                parts[size].append(entry)
                if size == 0:
                    owner.append(np.full(len(entry['dtScores']), image))
        image = np.concatenate([*owner, np.zeros(0, np.int64)]).astype(np.int64)
        rank = np.concatenate([*(np.arange(len(some)) for some in owner), []]).astype(np.int64)
        scores = np.concatenate([*(entry['dtScores'] for entry in parts[0]), []])
        best = np.argsort(-scores, kind='mergesort')
        hit, ignored = (
            np.stack([_row(entries, key, thresholds, len(scores)) for entries in parts])
            for key in ('dtMatches', 'dtIgnore')
        )
        found.append(
            ClassMatches(
                image[best], scores[best], rank[best], hit[..., best], ignored[..., best], positives
            )
        )
    return Matches(found, np.asarray(params.iouThrs), images)


def _row(entries: list[dict], key: str, thresholds: int, count: int) -> np.ndarray:
    if not count:
        return np.zeros((thresholds, 0), bool)
    return np.concatenate([np.asarray(entry[key]) for entry in entries], axis=1) != 0


def average_precision(
    matches: Matches,
    counts: np.ndarray | None = None,
    size: str = 'all',
    threshold: float | None = None,
    most: int = 100,
) -> np.ndarray:
    """Average precision of each class and threshold on sets of images.

    Args:
        matches: what :func:`match` found.
        counts: (B, N) how often each image is in each set; by default one set, each image once.
        size: a key of :data:`SIZES`.
        threshold: only this one of the IoU.
        most: detections of an image and class that count, best first.

    Returns:
        (B, classes, T), between 0 and 1; NaN where a set has no object of the class.
    """
    if counts is None:
        counts = np.ones((1, matches.images))
    which = range(len(matches.thresholds))
    if threshold is not None:
        which = np.flatnonzero(np.isclose(matches.thresholds, threshold)).tolist()
    area = list(SIZES).index(size)
    values = np.full((len(counts), len(matches.classes), len(which)), np.nan)
    for number, own in enumerate(matches.classes):
        positives = counts @ own.positives[area]
        seen = own.rank < most
        image = own.image[seen]
        rows = max(1, _CHUNK // max(1, len(image)))
        for begin in range(0, len(counts), rows):
            part = slice(begin, begin + rows)
            weight = counts[part][:, image]
            told, before = weight, None
            for column, index in enumerate(which):
                counted = ~own.ignored[area, index, seen]
                if before is None or not np.array_equal(counted, before):
                    told, before = np.cumsum(weight * counted, axis=1), counted
                # Precision is highest right after a hit: other places need not be kept.
                places = np.flatnonzero(own.hit[area, index, seen] & counted)
                right = np.cumsum(weight[:, places], axis=1)
                values[part, number, column] = _interpolated(
                    right, told[:, places], positives[part]
                )
    return values


def _interpolated(right: np.ndarray, told: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Mean over 101 recalls of the best precision at that recall or a higher one.

    Args:
        right: (B, H) hits up to each of the H hits, in each set.
        told: (B, H) detections up to there.
        positives: (B,) objects to be found.
    """
    precision = right / np.maximum(told, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    sets, hits = right.shape
    with np.errstate(divide='ignore', invalid='ignore'):
        recall = right / positives[:, None]
    # A hit whose recall is below the j-th of the 101 recalls has a bin of at most j.
    bins = np.searchsorted(_RECALLS, recall, side='right') + np.arange(sets)[:, None] * 102
    below = np.bincount(bins.ravel(), minlength=sets * 102).reshape(sets, 102).cumsum(1)[:, :101]
    padded = np.concatenate([precision, np.zeros((sets, 1))], axis=1)
    value = np.take_along_axis(padded, np.minimum(below, hits), axis=1).mean(1)
    return np.where(positives > 0, value, np.nan)


def mean_over(values: np.ndarray) -> np.ndarray:
    """(B,) mean over classes and thresholds without those that have no object; -1 without any."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # of sets without any object
        mean = np.nanmean(values.reshape(len(values), -1), axis=1)
    return np.where(np.isnan(mean), -1.0, mean)
