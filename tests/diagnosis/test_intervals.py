"""The interval of a gain: how often it holds the truth, and what must be exact."""

from __future__ import annotations

import numpy as np
import pytest

from mmkd_plugin.diagnosis import paired_interval

PAIRS = 2000


def coverage(seeds: int, images: int, by_seed: float, by_image: float, level: float) -> float:
    """In percent: how often the interval holds the true gain of pairs that are made up."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(PAIRS):
        base = generator.normal(size=(1, images)) + np.zeros((seeds, 1))
        gain = 0.3 + by_seed * generator.normal(size=(seeds, 1))
        gain = gain + by_image * generator.normal(size=images)
        _, low, high = paired_interval(
            base, base + gain + generator.normal(size=(seeds, images)), level
        )
        held += low <= 0.3 <= high
    return 100 * held / PAIRS


@pytest.mark.parametrize(
    'seeds, images, by_seed, by_image',
    [(1, 50, 0, 0.5), (3, 60, 0, 0), (3, 60, 0, 1), (3, 60, 0.1, 1), (5, 100, 0.3, 0.2)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds, images, by_seed, by_image):
    assert 93 <= coverage(seeds, images, by_seed, by_image, 0.95) <= 97


def test_another_level_is_held_too():
    assert 77 <= coverage(3, 60, 0.1, 0.5, 0.8) <= 84


def test_hits_of_classifiers_are_covered():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(PAIRS):
        hard = generator.normal(size=200)
        hits = [
            (hard + generator.normal(size=(3, 200)) < edge).astype(float) for edge in (0.5, 0.8)
        ]
        _, low, high = paired_interval(*hits)
        held += low <= 0.076158 <= high  # Phi(0.8 / sqrt 2) - Phi(0.5 / sqrt 2)
    assert 93 <= 100 * held / PAIRS <= 97


def test_exchanged_sides_exchange_the_signs_exactly():
    generator = np.random.default_rng(1)
    for seeds in (1, 2, 4):
        a, b = generator.normal(size=(2, seeds, 31))
        mean, low, high = paired_interval(a, b, seed=3)
        assert paired_interval(b, a, seed=3) == (-mean, -high, -low)
        assert low < mean < high and mean == pytest.approx((b - a).mean())
        assert paired_interval(a, a) == (0.0, 0.0, 0.0)
        assert paired_interval(a, b, seed=3) == (mean, low, high)


def test_more_seeds_and_images_make_it_narrower():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, 5, 400))

    def width(*arrays):
        _, low, high = paired_interval(*arrays)
        return high - low

    assert width(a, b) < width(a[:1], b[:1])
    assert width(a, b) < width(a[:, :50], b[:, :50])
    assert paired_interval(a[0], b[0]) == paired_interval(a[:1], b[:1])


@pytest.mark.parametrize(
    'base, run, level, said',
    [
        ([[1.0, 2]], [[1.0, 2, 3]], 0.95, 'one shape'),
        (np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), 0.95, 'one shape'),
        ([1.0], [2.0], 0.95, 'at least 2 images'),
        ([], [], 0.95, 'at least 2 images'),
        ([1.0, np.nan], [1.0, 2], 0.95, 'finite'),
        ([1.0, 1], [1.0, 2], 95, 'between 0 and 1'),
    ],
)
def test_what_gives_no_interval_is_refused(base, run, level, said):
    with pytest.raises(ValueError, match=said):
        paired_interval(base, run, level)
