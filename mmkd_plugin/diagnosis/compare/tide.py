"""Errors of a detector by kind, and what each kind costs, as in TIDE (Bolya et al., ECCV 2020).

At an IoU of 0.5 every detection that matches nothing has one kind of error, every object that
nothing could have found is missed. What a kind costs is the AP that mending all its errors, and
nothing else, would add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .objects import Objects, overlaps

KINDS = ('classification', 'localization', 'both', 'duplicate', 'background', 'missed')
_MATCHED, _IGNORED = 'matched', 'ignored'
_MENDED = ('classification', 'localization')  # mending these finds an object


@dataclass
class _Judged:
    """Detections (D) and objects (G) of all images.

    Attributes:
        kind: (D,) a kind, or matched.
        counts: (D,) whether the detection is in the curve; one in a crowd is not.
        target: (D,) the object that mending it would find; -1 without.
        missed: (G,) whether nothing could have found the object.
    """

    kind: np.ndarray
    counts: np.ndarray
    target: np.ndarray
    missed: np.ndarray


def error_costs(
    truth: Objects,
    found: Objects,
    images: int,
    kind: str = 'bbox',
    positive: float = 0.5,
    background: float = 0.1,
    most: int = 100,
) -> dict[str, float]:
    """What each kind of error costs.

    Args:
        truth: labelled objects.
        found: detected objects.
        images: number of images.
        kind: ``'bbox'`` or ``'segm'``.
        positive: IoU from which a detection finds an object.
        background: IoU up to which it lies beside all objects.
        most: detections of an image that count, best first.

    Returns:
        For each of :data:`KINDS` the AP that mending adds, in points of 100.
    """
    found = _best(found, images, most)
    judged = _judge(truth, found, images, kind, positive, background)
    right = judged.kind == _MATCHED
    objects = truth.label[~truth.crowd]
    before = _mean_ap(found.label, found.score, right, judged.counts, objects)
    costs = {}
    for name in KINDS:
        label, hit, kept = found.label.copy(), right.copy(), judged.counts.copy()
        own = judged.kind == name
        kept[own] = False
        if name in _MENDED:
            mended = own & (judged.target >= 0)
            label[mended] = truth.label[judged.target[mended]]
            hit[mended] = kept[mended] = True
        left = truth.label[~truth.crowd & ~judged.missed] if name == 'missed' else objects
        costs[name] = _mean_ap(label, found.score, hit, kept, left) - before
    return costs


def _best(found: Objects, images: int, most: int) -> Objects:
    """The best ``most`` detections of each image, best first."""
    chosen = [
        own[np.argsort(-found.score[own], kind='stable')][:most] for own in found.per_image(images)
    ]
    index = np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64)
    return found.chosen(index)


def _judge(
    truth: Objects, found: Objects, images: int, kind: str, positive: float, background: float
) -> _Judged:
    judged = _Judged(
        np.full(len(found), 'background', dtype='U14'),
        np.ones(len(found), bool),
        np.full(len(found), -1),
        np.zeros(len(truth), bool),
    )
    for own, theirs in zip(found.per_image(images), truth.per_image(images)):
        crowd = theirs[truth.crowd[theirs]]
        objects = theirs[~truth.crowd[theirs]]
        shapes = _shapes(found, own, kind), _shapes(truth, objects, kind)
        iou = overlaps(*shapes, np.zeros(len(objects), bool))
        same = found.label[own][:, None] == truth.label[objects]
        matched, used = _matching(iou * same, positive)
        judged.kind[own[matched]] = _MATCHED
        in_crowd = _in_crowd(truth, found, own, crowd, kind, positive)
        judged.counts[own[in_crowd & ~matched]] = False
        wrong = np.flatnonzero(~matched)
        if len(objects):
            kinds, targets = _kinds(iou[wrong], same[wrong], used, positive, background)
            judged.kind[own[wrong]] = kinds
            _choose(judged, found, own[wrong], objects, used, targets)
        reached = objects[np.isin(objects, judged.target[own])]
        judged.missed[objects[~used]] = True
        judged.missed[reached] = False
    return judged


def _shapes(side: Objects, index: np.ndarray, kind: str) -> Any:
    if kind == 'bbox' or side.mask is None:
        return side.box[index]
    return [side.mask[i] for i in index]


def _matching(iou: np.ndarray, positive: float) -> tuple[np.ndarray, np.ndarray]:
    """Each detection, best first, takes the free object of its class that it overlaps most."""
    matched, used = (np.zeros(count, bool) for count in iou.shape)
    free = iou.copy()
    for row in range(len(iou) if iou.shape[1] else 0):
        best = free[row].argmax()
        if free[row, best] >= positive:
            matched[row] = used[best] = True
            free[:, best] = 0
    return matched, used


def _in_crowd(
    truth: Objects, found: Objects, own: np.ndarray, crowd: np.ndarray, kind: str, positive: float
) -> np.ndarray:
    if not len(crowd) or not len(own):
        return np.zeros(len(own), bool)
    shapes = _shapes(found, own, kind), _shapes(truth, crowd, kind)
    iou = overlaps(*shapes, np.ones(len(crowd), bool))
    return ((iou > positive) & (found.label[own][:, None] == truth.label[crowd])).any(1)


def _kinds(
    iou: np.ndarray, same: np.ndarray, used: np.ndarray, positive: float, background: float
) -> tuple[np.ndarray, np.ndarray]:
    """The first kind that fits each wrong detection, and the object that it should have found."""
    own, other = iou * same, iou * ~same
    taken = (own * used).max(1)
    conditions = {
        'localization': (background <= own.max(1)) & (own.max(1) <= positive),
        'classification': other.max(1) >= positive,
        'duplicate': taken >= positive,
        'background': iou.max(1) <= background,
    }
    kinds = np.select(list(conditions.values()), list(conditions), 'both')
    targets = np.where(kinds == 'localization', own.argmax(1), other.argmax(1))
    targets[~np.isin(kinds, _MENDED)] = -1
    return kinds, targets


def _choose(
    judged: _Judged,
    found: Objects,
    wrong: np.ndarray,
    objects: np.ndarray,
    used: np.ndarray,
    targets: np.ndarray,
) -> None:
    """Of all detections that would find an object, mending takes the one with the best score."""
    for place in np.flatnonzero(~used):
        rivals = wrong[targets == place]
        if len(rivals):
            judged.target[rivals[found.score[rivals].argmax()]] = objects[place]


def _mean_ap(
    label: np.ndarray, score: np.ndarray, hit: np.ndarray, kept: np.ndarray, objects: np.ndarray
) -> float:
    """AP in points of 100, mean over the classes that have objects or detections."""
    label, score, hit = label[kept], score[kept], hit[kept]
    classes = np.union1d(label, objects)
    values = []
    for number in classes:
        own = label == number
        count = int((objects == number).sum())
        values.append(_ap(score[own], hit[own], count) if count else 0.0)
    return 100 * float(np.mean(values)) if values else 0.0


def _ap(score: np.ndarray, hit: np.ndarray, positives: int) -> float:
    right = hit[np.argsort(-score, kind='stable')].cumsum()
    if not len(right):
        return 0.0
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / positives, np.arange(101) / 100, side='left')
    return float(np.append(precision, 0.0)[places].mean())
