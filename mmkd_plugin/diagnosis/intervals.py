"""How sure a difference between runs is: an interval from images drawn anew and from the seeds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

DRAWS = 1000  # sets of images that are drawn
_CHUNK = 1 << 22  # counts that are held as floats at a time
# The seeds' own variance is a difference of two estimates. Where it comes out negative, at least
# this share of the images' variance stays; with 1 the interval is too wide where seeds are alike.
_LEAST = 0.95


def paired_interval(
    base: Any, run: Any, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of paired measurements, and the interval in which it lies.

    The images are drawn anew, with replacement, the same ones for both sides and for all seeds.
    That gives the variance that the choice of images brings. Seeds are the outer level: what they
    differ by beyond what images explain is added, divided by their number. The interval is
    Student's, with the degrees of freedom of that sum (Satterthwaite); see :func:`spread`.

    ``paired_interval(a, b)`` is exactly minus ``paired_interval(b, a)``, with the ends exchanged.

    Args:
        base: numbers of the images, shape (images,) or (seeds, images).
        run: of the same shape: the same images, and at the same place the same seed.
        level: how often the interval is to hold the true difference, between 0 and 1.
        seed: of the images that are drawn.

    Returns:
        Mean of ``run - base``, lower end, upper end.

    Raises:
        ValueError: shapes that differ, fewer than 2 images, numbers that are not finite, or
            ``level`` out of range.

    Example:
        >>> import numpy as np
        >>> hits = np.random.default_rng(0).random((2, 3, 500)) < [[[0.5]], [[0.9]]]
        >>> mean, low, high = paired_interval(*hits)
        >>> 0.3 < low < mean < high < 0.5
        True
        >>> paired_interval(hits[0], hits[0])
        (0.0, 0.0, 0.0)
    """
    sides = [np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in (base, run)]
    if sides[0].shape != sides[1].shape or sides[0].ndim != 2:
        raise ValueError(
            f'base {np.shape(base)} and run {np.shape(run)} must have one shape, '
            '(seeds, images) or (images,).'
        )
    if not all(np.isfinite(side).all() for side in sides):
        raise ValueError('base and run must be finite numbers; at least one is NaN or infinite.')
    gains = sides[1] - sides[0]
    images = gains.shape[1]
    check_images(images)
    draws = [counts @ gains.T for counts in image_counts(images, seed)]
    return interval(gains.mean(1), np.concatenate(draws).T / images, images, level)


def check_images(images: int) -> None:
    """Refuses fewer images than a variance takes."""
    if images < 2:
        raise ValueError(
            f'An interval needs at least 2 images to draw from, got {images}; give more images.'
        )


def image_counts(images: int, seed: int = 0, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """How often each image is in each set that is drawn, in portions: float (some draws, images).

    Args:
        images: the number of images, also in a set.
        seed: the same seed gives the same sets.
        draws: the number of sets.
    """
    counts = _all_counts(images, seed, draws)
    rows = max(1, _CHUNK // images)
    for begin in range(0, draws, rows):
        yield counts[begin : begin + rows].astype(np.float64)


@lru_cache(maxsize=2)
def _all_counts(images: int, seed: int, draws: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    counts = np.empty((draws, images), np.uint16)
    for row in counts:
        row[:] = np.bincount(generator.integers(0, images, images), minlength=images)
    return counts


def interval(
    gains: np.ndarray, drawn: np.ndarray, images: int, level: float = 0.95
) -> tuple[float, float, float]:
    """The interval around the mean gain of several seeds.

    Args:
        gains: (seeds,), on all images.
        drawn: (seeds, draws), on each set of images that was drawn.
        images: their number.
        level: how often it is to hold the true gain.

    Returns:
        Mean, lower end, upper end.

    Raises:
        ValueError: ``level`` out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f'level={level!r} must lie between 0 and 1, such as 0.95.')
    from scipy.special import stdtrit

    variance, freedom = spread(gains, drawn, images)
    half = float(stdtrit(freedom, 0.5 + level / 2) * np.sqrt(variance))
    mean = float(gains.mean())
    return mean, mean - half, mean + half


def spread(gains: np.ndarray, drawn: np.ndarray, images: int) -> tuple[float, float]:
    """Variance of the mean gain over images and seeds, and its degrees of freedom.

    With gain g_s of seed s and g_sb of it on the drawn set b, unbiased in each part:

    - images: the variance over b of the mean over s;
    - both: the variance over s of g_sb - g_s, mean over b: what images do to seeds one by one;
    - seeds: (variance over s of g_s - both) / number of seeds.

    One seed says nothing of others: its interval is about other images only.

    Args:
        gains: (seeds,).
        drawn: (seeds, draws).
        images: their number.
    """
    seeds = len(gains)
    unbiased = images / (images - 1)  # a drawn set varies less than a new one by this factor
    by_images = float(drawn.mean(0).var()) * unbiased
    if seeds == 1 or (not by_images and not np.ptp(gains)):
        return by_images, images - 1
    deviations = drawn - gains[:, None]
    both = float(deviations.var(0, ddof=1).mean()) * unbiased
    by_seeds = float(gains.var(ddof=1))
    least = _LEAST * by_images
    variance = max(by_images + (by_seeds - both) / seeds, least)
    if variance == least:
        return variance, images - 1
    parts = (
        (by_images, images - 1),
        (by_seeds / seeds, seeds - 1),
        (both / seeds, (images - 1) * (seeds - 1)),
    )
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    return variance, float(np.clip(freedom, seeds - 1, images - 1))
