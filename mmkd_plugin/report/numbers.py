"""The numbers of a comparison in words and rows, for the terminal and for the report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..diagnosis.compare.comparison import ComparedRun, Comparison


def digits_of(comparison: Comparison) -> int:
    """Decimals: metrics between 0 and 1 take three, those in percent two."""
    values = [one.value for group in comparison.groups.values() for one in group]
    return 3 if max(map(abs, values)) <= 1 else 2


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Formats a mean, with the sample standard deviation where there are several values."""
    if not values:
        return 'n/a'
    text = f'{statistics.fmean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.{digits}f}'
    return text


def summary_rows(comparison: Comparison) -> list[list[str]]:
    """A header and one row for each side."""
    digits = digits_of(comparison)
    header = ['', comparison.metric, 'Runs', 'Parameters', 'GFLOPs', 'Time an image', 'Training']
    rows = [header]
    for name, group in comparison.groups.items():
        cost = comparison.cost[name]
        rows.append(
            [
                name,
                spread([one.value for one in group], digits),
                str(len(group)),
                f'{cost["parameters"] / 1e6:.2f} M',
                'n/a' if cost['flops'] is None else f'{cost["flops"] / 1e9:.3f}',
                f'{cost["seconds_per_image"] * 1e3:.1f} ms',
                _duration(cost['training_seconds']),
            ]
        )
    return rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return 'n/a'
    return f'{seconds:.0f} s' if seconds < 600 else f'{seconds / 3600:.2f} h'


def gain_sentence(comparison: Comparison) -> str:
    """Says in words whether the gain is real."""
    digits, gain, pairs = digits_of(comparison), comparison.gain, len(comparison.pairs)
    base, run = comparison.names
    images = comparison.pairs[0][0].found.images
    told = (
        f'{comparison.metric} of {run} minus {base}: {gain["mean"]:+.{digits}f}, 95 % interval '
        f'{gain["low"]:+.{digits}f} to {gain["high"]:+.{digits}f}, over {images} images and '
        f'{pairs} {"pair" if pairs == 1 else "pairs"} of runs. '
    )
    if gain['low'] == gain['high'] == 0:
        return told + 'Both score the same.'
    elif gain['low'] > 0:
        told += f'{run} is better: the interval lies above 0.'
    elif gain['high'] < 0:
        told += f'{run} is worse: the interval lies below 0.'
    else:
        told += 'No difference is shown: the interval holds 0.'
    if pairs == 1:
        told += (
            ' With one pair of runs the interval is about other images only; other seeds may '
            'change the sign.'
        )
    else:
        better = sum(after.value > before.value for before, after in comparison.pairs)
        told += f' {run} is better in {better} of {pairs} pairs.'
    return told


def run_rows(comparison: Comparison) -> list[list[str]]:
    """A header and one row for each run."""
    digits = digits_of(comparison)
    rows = [['Run', 'Seed', comparison.metric, 'Checkpoint']]
    for name, group in comparison.groups.items():
        for one in group:
            seed = 'unknown' if one.run.seed is None else str(one.run.seed)
            rows.append([name, seed, f'{one.value:.{digits}f}', str(one.run.checkpoint)])
    return rows


def metric_curve(one: ComparedRun, metric: str) -> list[tuple[float, float]]:
    """The metric over training, as it was logged."""
    metrics: dict[str, Any] = one.curves['metrics']
    return [(place, value) for place, value in metrics.get(metric, []) if value == value]
