"""Differences between two readings of the same images, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FLIPS = 9999


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences.

    Attributes:
        mean: over the pairs.
        error: standard error of the mean; infinite for fewer than two pairs.
        p: how often a mean this far above 0 comes up if signs are drawn by chance.
        count: of pairs.
    """

    mean: float
    error: float
    p: float
    count: int

    @property
    def upper(self) -> float:
        """Above this the true mean lies in one case of 200."""
        return self.mean + 2.6 * self.error


def difference(values: np.ndarray, seed: int = 0) -> Difference:
    """Mean of differences and a test by flipped signs, which asks for no distribution.

    Args:
        values: (N,) differences of pairs; NaN are left out.
        seed: of the signs.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    count = len(values)
    if not count:
        return Difference(0.0, float('inf'), 1.0, 0)
    mean = float(values.mean())
    error = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float('inf')
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (FLIPS, count))
    as_far = int((signs @ values / count >= mean - 1e-12).sum())
    return Difference(mean, error, (1 + as_far) / (1 + FLIPS), count)
