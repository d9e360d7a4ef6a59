"""What the terms do to a student: their losses and gradients on batches of training data.

Needs a student with terms attached and a loader, nothing else. No step of an optimizer is made, and
buffers, random states and the terms' weights are as they were afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..distiller import ATTRIBUTE, Distiller
from ..rng import rng_kept
from ..taps.foreign import AnyModule
from ..terms.base import Term
from ..terms.logit_term import LogitTerm
from ..weights.calibration import Gauge, total
from ..weights.gradients import gradients, trainable
from .levels import LevelPair, look_at_levels
from .rows import RowCounts, count_rows, listen, unlisten

LATE = 10**6  # iteration and epoch at which every term has begun and no ramp is left


@dataclass
class TermMeasure:
    """One term over some batches; lists have an entry for each batch in which it acted.

    Attributes:
        kind: what it compares, a key of :data:`mmkd_plugin.weights.TARGETS`.
        weight: of the config; None where the run finds it.
        target: of ``weight='auto'``, whatever the weight is.
        has_connectors: whether layers belong to it that are not the student's.
        losses: as logged, at the weight of the config or at 1.
        rows: that count.
        ratios: gradient of the term by that of the task.
        cosines: of the angle between them.
        reaches: whether a gradient arrives at a trainable weight of the student.
        counts: of rows with a class.
        levels: pairs of maps.
        refused: what the first step said no with.
    """

    kind: str
    weight: float | None
    target: float
    has_connectors: bool = False
    losses: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    reaches: bool = False
    counts: RowCounts = field(default_factory=RowCounts)
    levels: dict[str, LevelPair] = field(default_factory=dict)
    refused: Exception | None = None

    @property
    def suggested(self) -> float | None:
        """The weight that ``'auto'`` finds from these batches (``docs/weights.md``)."""
        gauge = Gauge(self.target)
        scale = 1.0 if self.weight is None else self.weight
        gauge.quotients = [-math.log(r / scale) for r in self.ratios if 0 < r < math.inf]
        return gauge.weight if scale else None


@dataclass
class Measured:
    """All terms over some batches.

    Attributes:
        terms: by name.
        images: how many were seen.
        refused: what the student itself failed with.
    """

    terms: dict[str, TermMeasure]
    images: int = 0
    refused: Exception | None = None


def measure_terms(
    student: AnyModule,
    loader: Any,
    batches: int,
    step: Callable[[int], None] | None = None,
    among: Sequence[nn.Parameter] | None = None,
) -> Measured:
    """Measures the terms that are attached to a student.

    Args:
        student: with a distiller.
        loader: gives training batches.
        batches: how many of them.
        step: told after each batch how many images it had.
        among: parameters whose gradients are compared; by default all that are trained.
    """
    distiller: Distiller = student.distiller
    parameters = trainable(student, ATTRIBUTE) if among is None else list(among)
    found = Measured({term.name: _new_measure(term) for term in distiller.terms})
    with examined(student) as heard:
        for data in islice(loader, batches):
            data = student.data_preprocessor(data, True)
            found.images += len(data['inputs'])
            losses = _losses(student, data, found, heard)
            if losses is None:
                break
            _take(student, losses, parameters, found, heard)
            if step is not None:
                step(len(data['inputs']))
    return found


def _new_measure(term: Term) -> TermMeasure:
    number = term.config.weight.number
    target = term.config.weight.target(term.kind)
    return TermMeasure(term.kind, number, target, any(True for _ in term.parameters()))


@contextmanager
def examined(
    student: AnyModule, without: Collection[str] = ()
) -> Iterator[dict[str, tuple[list, list]]]:
    """The student in training mode, its terms at full weight, and somebody listening to them.

    Args:
        student: with terms attached.
        without: names of terms that do not act.
    """
    distiller: Distiller = student.distiller
    buffers = [(b, b.detach().clone()) for b in student.buffers()]
    mode, task_weight, gauges = student.training, distiller.task_weight, {}
    gauges.update(distiller.calibration.gauges)
    distiller.calibration.gauges.clear()  # terms with a target act with weight 1
    distiller.task_weight = 1.0
    distiller.set_progress(LATE, LATE)
    for term in distiller.terms:
        term.ramp, term.active = 1.0, term.weight > 0 and term.name not in without
        term.apply_weight()
    heard = {term.name: listen(term) for term in distiller.terms}
    try:
        with rng_kept():
            torch.manual_seed(0)
            student.train()
            yield heard
    finally:
        for term in distiller.terms:
            unlisten(term)
        distiller.task_weight = task_weight
        distiller.calibration.gauges.update(gauges)
        student.train(mode)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _losses(
    student: AnyModule, data: dict, found: Measured, heard: dict[str, tuple[list, list]]
) -> dict | None:
    """The losses of a batch. A term that refuses is left out from then on; None where the student
    itself fails, or no term is left."""
    terms = {term.name: term for term in student.distiller.terms}
    while True:
        for reads in heard.values():
            reads[0].clear()
            reads[1].clear()
        try:
            return student(**data, mode='loss')
        except Exception as error:
            student.distiller.abandon()
            name = next((n for n, t in terms.items() if str(error).startswith(t.where)), None)
            if name is None or not terms[name].active:
                found.refused = error
                return None
            found.terms[name].refused = error
            terms[name].active = False
            if not any(term.active for term in terms.values()):
                return None


def _take(
    student: AnyModule,
    losses: dict,
    parameters: Sequence[nn.Parameter],
    found: Measured,
    heard: dict[str, tuple[list, list]],
) -> None:
    distiller: Distiller = student.distiller
    task_losses = {k: v for k, v in losses.items() if k not in distiller.keys}
    task = gradients(total(task_losses), parameters, student)
    for term in distiller.terms:
        if not term.active:
            continue
        measure, loss = found.terms[term.name], losses[f'loss_{term.name}']
        measure.losses.append(float(loss.detach()))
        if f'{term.name}_rows' in losses:
            measure.rows.append(float(losses[f'{term.name}_rows']))
        own = gradients(loss, parameters, student)
        measure.reaches |= any(g is not None for g in own)
        ratio, cosine = compare(own, task)
        if ratio is not None:
            measure.ratios.append(ratio)
        if cosine is not None:
            measure.cosines.append(cosine)
        _look(term, measure, heard[term.name])


def _look(term: Term, measure: TermMeasure, heard: tuple[list, list]) -> None:
    """At what the views of a term have read."""
    if not isinstance(term, LogitTerm):
        look_at_levels(measure.levels, heard)
        return
    if not (term.student.of_classes and term.teacher.of_classes):
        return
    columns = None if term.classes is None else term.classes.columns
    for own, theirs in zip(*heard):
        for s, t in zip(own, theirs):
            measure.counts.add(count_rows(s, t, columns))


def compare(
    own: Sequence[Tensor | None], task: Sequence[Tensor | None]
) -> tuple[float | None, float | None]:
    """Ratio of the norms of two gradients and the cosine between them, where both arrive.

    Args:
        own: of the term, by parameter; None where it does not arrive.
        task: of the student's own losses.

    Returns:
        Ratio and cosine; None where the task has no gradient, or one of them is 0.
    """
    pairs = [(a, b) for a, b in zip(own, task) if a is not None and b is not None]
    dots = [
        torch.stack([(a * a).sum(dtype=torch.float64), (b * b).sum(dtype=torch.float64),
                     (a * b).sum(dtype=torch.float64)])
        for a, b in pairs
    ]  # fmt: skip
    if not dots:
        return None, None
    squares = torch.stack(dots).sum(0).tolist()
    norm, reference = math.sqrt(squares[0]), math.sqrt(squares[1])
    if not reference > 0:
        return None, None
    return norm / reference, squares[2] / (norm * reference) if norm > 0 else None
