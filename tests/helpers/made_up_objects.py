"""Labelled and detected boxes that are drawn at random, with every kind of error among them."""

from __future__ import annotations

import numpy as np

from mmkd_plugin.diagnosis.compare.objects import Objects


def made_up(
    seed: int = 0, images: int = 12, classes: int = 4, crowd: float = 0.1
) -> tuple[Objects, Objects]:
    """Truth and detections: some exact, some beside, some of another class, some of nothing.

    Args:
        seed: of the random numbers.
        images: number of images; some have no object.
        classes: number of classes.
        crowd: share of the objects that are crowds.
    """
    random = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(images):
        for _ in range(random.integers(0, 6)):
            box = np.r_[random.uniform(0, 60, 2), random.uniform(10, 40, 2)]
            label = random.integers(classes)
            truth.append([image, label, *box, 1.0, random.random() < crowd])
            for _ in range(random.integers(0, 4)):
                beside = box + random.normal(size=4) * random.choice([0.5, 2, 6])
                told = label if random.random() < 0.6 else random.integers(classes)
                found.append([image, told, *beside, random.random(), False])
        for _ in range(random.integers(0, 4)):
            anywhere = np.r_[random.uniform(0, 60, 2), random.uniform(10, 30, 2)]
            found.append([image, random.integers(classes), *anywhere, random.random(), False])
    return objects(truth), objects(found)


def objects(rows: list) -> Objects:
    """Objects of rows (image, label, left, top, width, height, score, crowd)."""
    table = np.array(rows, np.float64).reshape(-1, 8)
    box = table[:, 2:6]
    box[:, 2:] = np.maximum(box[:, 2:], 1)
    image, label = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    return Objects(image, label, box, table[:, 6], table[:, 7].astype(bool), box[:, 2] * box[:, 3])
