"""Finished runs compared: the metric and its gain, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..intervals import check_images, image_counts, interval
from .average_precision import SIZES, Matches, average_precision
from .calibration import calibration
from .curves import read_curves
from .errors import CompareError
from .measures import Measure, choose_metric, kind_of, matches_of, measure_of
from .pairing import check_same_set, pair_seeds
from .predict import predictions_of
from .predictions import Predictions
from .tide import error_costs
from .work_dirs import FinishedRun

VERSION = 1  # of the JSON


@dataclass
class ComparedRun:
    """One run of a comparison.

    Attributes:
        run: its work dir.
        value: of the metric, as the evaluator of its config gives it.
        found: what it predicts.
        matches: its detections matched to the objects; None of other tasks.
        measure: the metric on other sets of its images.
        curves: what it logged.
    """

    run: FinishedRun
    value: float
    found: Predictions
    matches: Matches | None
    measure: Measure
    curves: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.run.folder)


@dataclass
class Comparison:
    """What was found out.

    Attributes:
        names: of the sides, the base first.
        metric: name of the metric.
        groups: the runs by name of their side; a side that is only shown comes after the two.
        pairs: runs of the same seed.
        gain: ``mean``, ``low``, ``high``.
        per_class: by name, the metric of each class; None where there is nothing to measure.
        class_gains: by class, ``mean``, ``low``, ``high``.
        per_size: by name, AP of small, medium and large objects.
        per_iou: by name, AP at each threshold of the IoU.
        errors: by name, what each kind of error costs.
        calibrations: by name, of classifiers.
        cost: by name: parameters, flops, seconds of an image.
        notes: sentences that a reader of the numbers has to know.
    """

    names: tuple[str, str]
    metric: str
    groups: dict[str, list[ComparedRun]]
    pairs: list[tuple[ComparedRun, ComparedRun]]
    gain: dict[str, float]
    per_class: dict[str, dict[str, float | None]] = field(default_factory=dict)
    class_gains: dict[str, dict[str, float]] = field(default_factory=dict)
    per_size: dict[str, dict[str, float | None]] = field(default_factory=dict)
    per_iou: dict[str, dict[str, float | None]] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    calibrations: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pairs[0][0].found.classes

    def as_json(self) -> dict[str, Any]:
        """The numbers, for a file."""
        runs = {
            name: [dict(dir=one.name, seed=one.run.seed, value=one.value) for one in group]
            for name, group in self.groups.items()
        }
        return dict(
            version=VERSION,
            names=list(self.names),
            metric=self.metric,
            runs=runs,
            gain=self.gain,
            per_class=self.per_class,
            class_gains=self.class_gains,
            per_size=self.per_size,
            per_iou=self.per_iou,
            errors=self.errors,
            calibration=self.calibrations,
            cost=self.cost,
            notes=self.notes,
        )


def compare_runs(
    base: tuple[str, Sequence[FinishedRun]],
    run: tuple[str, Sequence[FinishedRun]],
    shown: Mapping[str, Sequence[FinishedRun]] | None = None,
    metric: str | None = None,
    seed: int = 0,
    tell: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Compares finished runs.

    Args:
        base: name and runs of the side to compare with.
        run: name and runs of the side whose gain is asked for.
        shown: further sides, such as a teacher, that are shown and not compared.
        metric: one that the evaluators give; by default the usual one of the task.
        seed: of the images that are drawn for the interval.
        tell: called with a run's name, how many images are predicted, and of how many.

    Returns:
        The comparison.

    Raises:
        CompareError: runs that cannot be compared, with what is missing.
    """
    sides = {base[0]: base[1], run[0]: run[1], **(shown or {})}
    predicted = {
        name: [(one, predictions_of(one, _telling(tell, one))) for one in runs]
        for name, runs in sides.items()
    }
    flat = [(str(one.folder), found) for group in predicted.values() for one, found in group]
    for other in flat[1:]:
        check_same_set(flat[0], other)
    check_images(flat[0][1].images)
    metric = choose_metric([found.metrics for _, found in flat], metric)
    groups = {
        name: [_compared(one, found, metric) for one, found in group]
        for name, group in predicted.items()
    }
    names = (base[0], run[0])
    pairs, note = pair_seeds(*([(one.run.seed, one) for one in groups[name]] for name in names))
    comparison = Comparison(names, metric, groups, pairs, {}, notes=[note] if note else [])
    _add_gains(comparison, seed)
    for name, group in groups.items():
        _add_details(comparison, name, group)
    return comparison


def _telling(
    tell: Callable[[str, int, int], None] | None, run: FinishedRun
) -> Callable[[int, int], None] | None:
    if tell is None:
        return None
    return lambda done, total: tell(str(run.folder), done, total)


def _compared(run: FinishedRun, found: Predictions, metric: str) -> ComparedRun:
    value = found.metrics[metric]
    if not math.isfinite(value):
        raise CompareError(
            f'The metric {metric} of {run.folder} is {value}: its predictions are no numbers, or '
            'the validation set has nothing to measure. Look at its training log, and compare an '
            'earlier checkpoint (--best) or another metric (--metric).'
        )
    if found.task == 'detection' and value == -1:
        raise CompareError(
            f'The metric {metric} of {run.folder} is -1: the validation set has no labelled object '
            'that it counts. Look at val_evaluator.ann_file in the config there.'
        )
    matches = matches_of(found, kind_of(metric))
    measure = measure_of(metric, found, matches, run.evaluator, run.config)
    return ComparedRun(run, value, found, matches, measure, read_curves(run.folder))


# -- the gain -------------------------------------------------------------------------------------


def _add_gains(comparison: Comparison, seed: int) -> None:
    """Gain and gains of the classes, each with its interval."""
    images = comparison.pairs[0][0].found.images
    tables, totals_drawn, tables_drawn = [], [], []
    for pair in comparison.pairs:
        before, after = (_exact(comparison, one) for one in pair)
        tables.append(after - before)
        before_drawn, after_drawn = (_drawn(one, images, seed) for one in pair)
        totals_drawn.append(after_drawn[0] - before_drawn[0])
        tables_drawn.append(after_drawn[1] - before_drawn[1])
    gains = np.array([after.value - before.value for before, after in comparison.pairs])
    comparison.gain = _named(interval(gains, np.stack(totals_drawn), images))
    table, drawn = np.stack(tables), np.stack(tables_drawn)
    for number in range(table.shape[1]):
        kept = np.isfinite(drawn[:, :, number]).all(0)  # a set may lack all objects of a class
        if np.isfinite(table[:, number]).all() and kept.mean() > 0.5:
            comparison.class_gains[comparison.classes[number]] = _named(
                interval(table[:, number], drawn[:, kept, number], images)
            )


def _exact(comparison: Comparison, one: ComparedRun) -> np.ndarray:
    """Values of the classes on all images, after a look whether the metric is the evaluator's."""
    totals, tables = one.measure.values(np.ones((1, one.found.images)))
    if abs(totals[0] - one.value) > one.measure.tolerance:
        comparison.notes.append(
            f'The interval rests on {comparison.metric} = {totals[0]:.4f} for {one.name}, where '
            f'its evaluator gives {one.value:.4f}.'
        )
    return tables[0]


def _drawn(one: ComparedRun, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    measure = one.measure
    parts = [measure.values(counts) for counts in image_counts(images, seed, measure.draws)]
    totals, tables = (np.concatenate(some) for some in zip(*parts))
    return totals, tables


def _named(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(('mean', 'low', 'high'), values))


# -- where it comes from --------------------------------------------------------------------------


def _add_details(comparison: Comparison, name: str, group: list[ComparedRun]) -> None:
    """Means over the runs of one side."""
    classes = comparison.classes
    ones = np.ones((1, group[0].found.images))
    tables = [one.measure.values(ones)[1][0] for one in group]
    if tables[0].size:
        comparison.per_class[name] = dict(zip(classes, map(_mean, zip(*tables))))
    matched = [one.matches for one in group if one.matches is not None]
    if matched:
        comparison.per_size[name] = {
            word: _mean([_average(own, size=size, most=1000) for own in matched])
            for size, word in SIZES.items()
            if size != 'all'
        }
        comparison.per_iou[name] = {
            f'{threshold:.2f}': _mean([_average(own, threshold=threshold) for own in matched])
            for threshold in matched[0].thresholds
        }
        comparison.errors[name] = _mean_errors(group, kind_of(comparison.metric))
    if group[0].found.scores is not None:
        comparison.calibrations[name] = _calibration(group)
    comparison.cost[name] = _cost(group)


def _mean(values: Any) -> float | None:
    known = [float(value) for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _average(matches: Matches, **options: Any) -> float | None:
    values = average_precision(matches, **options)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _mean_errors(group: list[ComparedRun], kind: str) -> dict[str, float]:
    costs = []
    for one in group:
        truth, found = one.found.truth, one.found.found
        assert truth is not None and found is not None  # there are matches
        found = found.of_masks() if kind == 'segm' else found
        costs.append(error_costs(truth, found, one.found.images, kind))
    return {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}


def _calibration(group: list[ComparedRun]) -> dict[str, Any]:
    """Of all runs of a side, each image of each run once; the error is the mean over the runs."""
    parts = [(one.found.scores, one.found.labels) for one in group]
    scores = [score for score, label in parts if score is not None and label is not None]
    labels = [label for score, label in parts if score is not None and label is not None]
    together = calibration(np.concatenate(scores), np.concatenate(labels))
    alone = [calibration(score, label)['ece'] for score, label in zip(scores, labels)]
    return dict(together, ece=float(np.mean(alone)))


def _cost(group: list[ComparedRun]) -> dict[str, Any]:
    first = group[0].found.cost
    seconds = [one.found.cost['seconds_per_image'] for one in group]
    trained = [one.curves['seconds'] for one in group if one.curves['seconds']]
    return dict(
        first,
        seconds_per_image=float(np.mean(seconds)),
        training_seconds=float(np.mean(trained)) if trained else None,
    )
