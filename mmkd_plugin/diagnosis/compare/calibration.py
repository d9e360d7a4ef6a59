"""Whether a classifier is as often right as it says."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15


def calibration(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """Expected calibration error and reliability, over bins of equal width.

    The confidence of an image is its highest probability. In each bin, confidence minus accuracy
    counts with the share of the images that fall into it.

    Args:
        scores: (N, C) probabilities.
        labels: (N,) true classes.
        bins: number of bins between 0 and 1; a bin contains its upper end.

    Returns:
        ``ece``, and ``bins``, each with ``low``, ``high``, ``images``, ``confidence``, ``accuracy``
        (the last two None in an empty bin).

    Example:
        >>> found = calibration(np.array([[0.8, 0.2], [0.7, 0.3]]), np.array([0, 1]))
        >>> round(found['ece'], 3)
        0.45
    """
    confidence = scores.max(1)
    right = scores.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side='left') - 1, 0, bins - 1)
    told, error = [], 0.0
    for index in range(bins):
        own = place == index
        count = int(own.sum())
        mean = float(confidence[own].mean()) if count else None
        share = float(right[own].mean()) if count else None
        if mean is not None and share is not None:
            error += count / len(labels) * abs(mean - share)
        told.append(
            dict(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                images=count,
                confidence=mean,
                accuracy=share,
            )
        )
    return dict(ece=error, bins=told)
