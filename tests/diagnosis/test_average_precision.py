"""AP on sets of images that are drawn: the same number as pycocotools gives for such a set."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from made_up_objects import made_up
from pycocotools.cocoeval import COCOeval

from mmkd_plugin.diagnosis.compare.average_precision import (
    _dataset,
    average_precision,
    match,
    mean_over,
)
from mmkd_plugin.diagnosis.compare.objects import Objects

CLASSES, IMAGES = 4, 12


def by_pycocotools(truth: Objects, found: Objects, images: int) -> np.ndarray:
    """AP, AP50, AP75, AP of small, medium and large objects."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for objects in (truth, found):
            side = COCO()
            side.dataset = _dataset(objects, list(range(images)), CLASSES, 'bbox')
            side.createIndex()
            sides.append(side)
        measured = COCOeval(*sides, 'bbox')
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return measured.stats[:6]


def repeated(objects: Objects, counts: np.ndarray) -> Objects:
    """The objects of a set in which each image stands as often as ``counts`` says."""
    own = objects.per_image(len(counts))
    order = [own[image] for image, count in enumerate(counts) for _ in range(count)]
    index = np.concatenate(order)
    image = np.repeat(np.arange(len(order)), [len(some) for some in order])
    arrays = (objects.label, objects.box, objects.score, objects.crowd, objects.area)
    return Objects(image, *(array[index] for array in arrays))


def six(truth: Objects, found: Objects, counts: np.ndarray) -> np.ndarray:
    matches = match(truth, found, list(range(counts.shape[1])), CLASSES)
    asked = [{}, dict(threshold=0.5), dict(threshold=0.75)] + [dict(size=s) for s in 'sml']
    return np.stack([mean_over(average_precision(matches, counts, **one)) for one in asked], 1)


@pytest.mark.parametrize('seed', range(5))
def test_ap_of_all_images_is_that_of_pycocotools(seed):
    truth, found = made_up(seed, IMAGES, CLASSES)
    own = six(truth, found, np.ones((1, IMAGES)))[0]
    assert own == pytest.approx(by_pycocotools(truth, found, IMAGES), abs=1e-12)
    assert own[0] > 0.05


def test_an_image_drawn_twice_counts_as_two_images():
    truth, found = made_up(3, IMAGES, CLASSES)
    random = np.random.default_rng(0)
    counts = np.stack([np.bincount(random.integers(0, IMAGES, IMAGES), minlength=IMAGES)
                       for _ in range(6)])  # fmt: skip
    own = six(truth, found, counts.astype(float))
    for row, count in zip(own, counts):
        again = by_pycocotools(repeated(truth, count), repeated(found, count), count.sum())
        assert row == pytest.approx(again, abs=1e-12)


def test_nothing_found_and_nothing_to_find():
    truth, found = made_up(0, IMAGES, CLASSES)
    nothing = Objects(*(getattr(found, name)[:0] for name in
                        ('image', 'label', 'box', 'score', 'crowd', 'area')))  # fmt: skip
    assert six(truth, nothing, np.ones((1, IMAGES)))[0, 0] == 0
    assert six(nothing, found, np.ones((1, IMAGES)))[0, 0] == -1
    assert by_pycocotools(truth, nothing, IMAGES)[0] == 0
