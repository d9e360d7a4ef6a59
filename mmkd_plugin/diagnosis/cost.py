"""What distillation costs: times of a step with and without it, and memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from ..distiller import Distiller
from ..rng import rng_kept
from ..taps.foreign import AnyModule
from ..weights.calibration import total

STEPS = 3  # timed, after one that is not
KEYS = ('student_step_s', 'teacher_s', 'terms_s', 'distilled_step_s', 'peak_memory_mb')


def measure_cost(student: AnyModule, loader: Any) -> dict[str, float | None]:
    """Forward and backward, without and with the terms; the optimizer's own time is not in it.

    Args:
        student: with terms attached, in training mode and with its terms at full weight.
        loader: gives training batches.

    Returns:
        Medians in seconds, and the most memory in megabytes: of the GPU, on a CPU of the process.
    """
    distiller: Distiller = student.distiller
    plain, distilled, teacher = [], [], []
    active = [term.active for term in distiller.terms]
    data = list(islice(loader, STEPS + 1))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with rng_kept(), _timed_teacher(distiller) as seconds:
        for batch in data:
            prepared = student.data_preprocessor(batch, True)
            for term in distiller.terms:
                term.active = False
            plain.append(_step(student, prepared))
            for term, was in zip(distiller.terms, active):
                term.active = was
            del seconds[:]
            distilled.append(_step(student, prepared))
            teacher.append(sum(seconds))
    alone, both, there = (_median(values) for values in (plain, distilled, teacher))
    rest = None if both is None or alone is None else max(both - alone - (there or 0.0), 0.0)
    return dict(zip(KEYS, (alone, there, rest, both, _peak_memory())))


def _step(student: AnyModule, data: dict) -> float:
    _wait()
    begin = time.perf_counter()
    total(student(**data, mode='loss')).backward()
    _wait()
    seconds = time.perf_counter() - begin
    student.zero_grad(set_to_none=True)
    return seconds


@contextmanager
def _timed_teacher(distiller: Distiller) -> Iterator[list[float]]:
    """Seconds of each run of the teacher."""
    seconds: list[float] = []
    run = distiller.teacher.run

    def timed(*args: Any, **kwargs: Any) -> None:
        _wait()
        begin = time.perf_counter()
        run(*args, **kwargs)
        _wait()
        seconds.append(time.perf_counter() - begin)

    distiller.teacher.run = timed  # type: ignore[method-assign]  # of this object, for a while
    try:
        yield seconds
    finally:
        del distiller.teacher.run


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _median(values: Sequence[float]) -> float | None:
    values = values[1:] or values  # the first step is slower
    return statistics.median(values) if values else None


def _peak_memory() -> float | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # not on every system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)
