"""The images on which two runs differ most."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .average_precision import Matches
from .comparison import ComparedRun, Comparison
from .predict import build_loader, in_scope

SHOWN_SCORE = 0.3  # detections below count neither here nor in pictures


def most_different(comparison: Comparison, count: int) -> list[tuple[int, float, float]]:
    """Images of the first pair of runs.

    Args:
        comparison: the runs.
        count: how many images at most.

    Returns:
        Index of an image with the quality of base and run on it, the largest gain first and the
        largest loss last. Images on which both are equal are left out.
    """
    before, after = (quality(one) for one in comparison.pairs[0])
    change = after - before
    first = np.argsort(-np.abs(change), kind='stable')[:count].tolist()
    order = sorted((index for index in first if change[index]), key=lambda index: -change[index])
    return [(index, float(before[index]), float(after[index])) for index in order]


def quality(one: ComparedRun) -> np.ndarray:
    """(N,) between 0 and 1, how good a run is on each image.

    F1 of detections, mean IoU over the classes in an image, probability of the true class; 0 of
    tasks that are not known.
    """
    found = one.found
    if one.matches is not None:
        return _f1(one.matches, found.images)
    if found.areas is not None:
        right, union = found.areas[:, 0].astype(np.float64), found.areas[:, 1]
        with np.errstate(invalid='ignore', divide='ignore'):
            return np.nan_to_num(np.nanmean(np.where(union > 0, right / union, np.nan), axis=1))
    if found.scores is not None and found.labels is not None:
        return found.scores[np.arange(found.images), found.labels]
    return np.zeros(found.images)


def _f1(matches: Matches, images: int) -> np.ndarray:
    """Of the detections that are shown, at the lowest threshold of the IoU."""
    right, told, truth = np.zeros((3, images))
    for own in matches.classes:
        shown = (own.score > SHOWN_SCORE) & ~own.ignored[0, 0]
        told += np.bincount(own.image[shown], minlength=images)
        right += np.bincount(own.image[shown & own.hit[0, 0]], minlength=images)
        truth += own.positives[0]
    return 2 * right / np.maximum(told + truth, 1)


def image_reader(one: ComparedRun) -> Callable[[int], np.ndarray | None]:
    """How the images of a run's set are read: from their files, else from the data set.

    Returns:
        A function of the index, which gives (H, W, 3) BGR, or None where the image is gone.
    """
    if all(one.found.paths):
        return lambda index: cv2.imread(one.found.paths[index])
    with in_scope(one.run.config):
        dataset = build_loader(one.run).dataset

    def read(index: int) -> np.ndarray | None:
        inputs = dataset[index]['inputs']
        if inputs.ndim != 3 or inputs.shape[0] not in (1, 3) or inputs.is_floating_point():
            return None
        image = inputs.permute(1, 2, 0).numpy().astype(np.uint8)
        return cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_GRAY2BGR)

    return read
