"""A metric on sets of images that are drawn: fast where its parts of each image are known."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config

from ..intervals import DRAWS
from .average_precision import Matches, average_precision, match, mean_over
from .errors import CompareError
from .predict import build_evaluator, in_scope
from .predictions import Predictions

_COCO = re.compile(r'(?:.*/)?(?P<kind>bbox|segm)_mAP(?:_(?P<part>50|75|s|m|l))?')
_TOP = re.compile(r'(?:.*/)?top(\d+)')
_PIXELS = ('mIoU', 'mAcc', 'aAcc', 'mDice')


Values = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Measure:
    """One metric of one run.

    Attributes:
        values: takes counts (B, N), how often each image is in each set; gives the metric (B,) and
            its values of each class (B, C). C is 0 where the metric has none of single classes.
        draws: how many sets are drawn.
        tolerance: to which the evaluator rounds.
    """

    values: Callable[[np.ndarray], Values]
    draws: int = DRAWS
    tolerance: float = 1e-4


def choose_metric(given: list[dict[str, float]], asked: str | None) -> str:
    """The metric that is compared.

    Args:
        given: what the evaluator of each run gave.
        asked: what the user wants; None takes mask AP, box AP, mIoU, top 1, or else the first.

    Raises:
        CompareError: one that an evaluator does not give.
    """
    shared = [key for key in given[0] if all(key in own for own in given)]
    if asked is not None and asked in shared:
        return asked
    if asked is not None:
        from ...checks import nearest

        raise CompareError(
            f'The evaluators give no metric {asked!r} for all runs; {nearest(asked, shared)}. '
            'Another one is computed where val_evaluator of the config in the work dirs asks for '
            'it.'
        )
    for wanted in (r'.*segm_mAP', r'.*bbox_mAP', r'mIoU|.*/mIoU', r'.*accuracy/top1'):
        for key in shared:
            if re.fullmatch(wanted, key):
                return key
    if not shared:
        raise CompareError(
            'The evaluators of the runs have no metric in common (they give '
            f'{"; ".join(", ".join(own) or "none" for own in given[:2])}): let val_evaluator of '
            'the configs in the work dirs be the same.'
        )
    return shared[0]


def kind_of(metric: str) -> str:
    """What is matched: ``'segm'`` for a metric of masks, else ``'bbox'``."""
    found = _COCO.fullmatch(metric)
    return found['kind'] if found else 'bbox'


def matches_of(found: Predictions, kind: str) -> Matches | None:
    """Matched detections; None of another task, or without labelled objects."""
    truth, detected = found.truth, found.found
    if truth is None or detected is None:
        return None
    if kind == 'segm':
        if truth.mask is None or detected.mask is None:
            return None
        detected = detected.of_masks()
    return match(truth, detected, found.ids, len(found.classes), kind)


def measure_of(
    metric: str, found: Predictions, matches: Matches | None, evaluator: Any, config: Config
) -> Measure:
    """How a metric is computed on sets of images.

    Args:
        metric: its name.
        found: the predictions.
        matches: of detections.
        evaluator: the config of the evaluator, for metrics that only it knows.
        config: of the run.

    Raises:
        CompareError: a metric that cannot be computed from its images one by one.
    """
    coco, top = _COCO.fullmatch(metric), _TOP.fullmatch(metric)
    if coco and matches is not None:
        return _of_boxes(matches, coco['part'])
    name = metric.rsplit('/', 1)[-1]
    if found.areas is not None and name in _PIXELS:
        return _of_pixels(found.areas.astype(np.float64), name)
    if top and found.scores is not None and found.labels is not None:
        return _of_hits(found.scores, found.labels, int(top[1]))
    return _by_evaluator(metric, found, evaluator, config)


def _of_boxes(matches: Matches, part: str | None) -> Measure:
    # MMDetection's mAP counts 100 detections of an image, its other numbers more.
    options: dict[str, Any] = dict(most=100)
    if part in ('50', '75'):
        options = dict(threshold=int(part) / 100, most=1000)
    elif part:
        options = dict(size=part, most=1000)

    def values(counts: np.ndarray) -> Values:
        table = average_precision(matches, counts, **options).mean(2)
        return mean_over(table), table

    return Measure(values, tolerance=6e-4)


def _of_pixels(areas: np.ndarray, name: str) -> Measure:
    def values(counts: np.ndarray) -> Values:
        right, union, told, label = np.einsum('bn,nkc->kbc', counts, areas)
        below = dict(mIoU=union, mAcc=label, aAcc=label, mDice=(told + label) / 2)[name]
        with np.errstate(invalid='ignore', divide='ignore'), warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)  # of sets without a labelled pixel
            table = 100 * right / below
            if name == 'aAcc':
                return 100 * right.sum(1) / label.sum(1), table
            return np.nanmean(table, axis=1), table

    return Measure(values, tolerance=6e-3)


def _of_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> Measure:
    hits = hits_of(scores, labels, k)
    member = (labels[:, None] == np.arange(scores.shape[1])).astype(np.float64)

    def values(counts: np.ndarray) -> Values:
        with np.errstate(invalid='ignore', divide='ignore'):
            table = 100 * ((counts * hits) @ member) / (counts @ member)
        return 100 * (counts @ hits) / counts.sum(1), table

    return Measure(values)


def hits_of(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """(N,) 1 where the true class is among the best k, else 0."""
    best = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return (best == labels[:, None]).any(1).astype(np.float64)


def _by_evaluator(metric: str, found: Predictions, evaluator: Any, config: Config) -> Measure:
    """The metric's own code on what it keeps of each image of a set."""
    refusal = CompareError(
        f'No interval can be given for {metric!r}: it is not made of numbers of single images that '
        f'this package knows. Take another one with --metric, such as {_usual(found)}.'
    )

    def of_set(own: Any, results: list) -> float | None:
        try:
            return _named(own, results).get(metric)
        except Exception as error:  # a metric that takes no image twice, among others
            raise refusal from error

    with in_scope(config):
        metrics = build_evaluator(evaluator).metrics
        for own in metrics:
            own.dataset_meta = dict(found.meta)
        pairs = [(metrics[place], kept) for place, kept in found.results.items()]
        pairs = [(own, kept) for own, kept in pairs if of_set(own, kept) is not None]
    if not pairs:
        raise refusal
    computed, kept = pairs[0]

    def values(counts: np.ndarray) -> Values:
        totals = []
        with in_scope(config):
            for row in counts:
                chosen = [kept[i] for i in np.repeat(np.arange(len(row)), row.astype(int))]
                totals.append(of_set(computed, chosen))
        return np.asarray(totals, np.float64), np.zeros((len(counts), 0))

    return Measure(values, draws=200)


def _named(metric: Any, results: list) -> dict[str, float]:
    """The numbers of a metric under the names that the evaluator gives them."""
    prefix = f'{metric.prefix}/' if metric.prefix else ''
    return {prefix + key: value for key, value in metric.compute_metrics(list(results)).items()}


def _usual(found: Predictions) -> str:
    known = [key for key in found.metrics if _COCO.fullmatch(key) or _TOP.fullmatch(key)]
    known += [key for key in found.metrics if key.rsplit('/', 1)[-1] in _PIXELS]
    return ', '.join(known) or 'one that is a mean over images'
