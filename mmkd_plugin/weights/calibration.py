"""Finds the weights that terms were not given: once, in the first steps in which a term acts."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn

from .gradients import ParameterNorms, parameter_norms
from .wishes import flag_text

# Active steps in which a term is measured, counted from 0, and how many of the last measurements
# count. The first quotients of a new student are far from those that follow (docs/weights.md).
MEASURED = (0, 2, 5, 9, 13, 15, 17, 19, 21, 23, 25, 27, 29)
COUNTED = 9
STEPS = MEASURED[-1] + 1  # after which the weight is a number for good
# A term's gradient in multiples of the task's that is no more than rounding: teacher and student
# agree. Divided by, it would give a weight of millions.
ROUNDING = 1e-5


class Term(Protocol):
    """What is asked of a term here; terms themselves are built upon this package.

    Attributes:
        name: what it is logged as.
        where: names it in messages.
        target: its gradient in multiples of the task's; None if it has a number.
        weight: what is set here.
        ramp: what its schedule makes of the weight in this step.
        current_weight: by which its loss of this step was multiplied.
        gated: whether a value of exactly 0 is a closed gate, and no fault.
    """

    name: str
    where: str
    weight: float
    ramp: float
    current_weight: float

    @property
    def gated(self) -> bool: ...

    @property
    def target(self) -> float | None: ...

    def idle(self) -> Tensor:
        """Zero that touches its parameters."""


class CalibrationError(ValueError):
    """A term for which no weight can be found."""


class Gauge:
    """What was measured of one term.

    The weight is the target times the median of task by term over the last :data:`COUNTED`
    measurements. A new detector's gradient is a hundred times its usual size in some steps; a mean,
    even of logarithms, would take a weight for those and pull as hard in all the others. From its
    first measurement on a term acts with the weight found so far.

    Args:
        target: the term's gradient in multiples of the task's.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.quotients: list[float] = []  # log(task / term), of an unweighted term
        self.steps = 0  # in which the term acted, with an open gate
        self.closed = 0  # before the first of these
        self.length = STEPS
        self._due = 0
        self._kept: float | None = None  # what a run has found that this one goes on from

    @property
    def frozen(self) -> bool:
        """Whether the weight is a number for good."""
        return self.steps >= self.length

    @property
    def is_due(self) -> bool:
        """Whether this step is measured; what could not be measured is due again."""
        return self._due < len(MEASURED) and self.steps >= MEASURED[self._due]

    @property
    def weight(self) -> float | None:
        """The weight as far as it is known; four digits, so that the logged number is exact."""
        found = self._found
        return None if found is None else float(f'{self.target * math.exp(found):.4g}')

    @property
    def _found(self) -> float | None:
        """The quotient that counts. Of two in the middle it is the smaller: one measurement too
        many must not drown the task."""
        if self._kept is not None:
            return self._kept
        counted = self.quotients[-COUNTED:]
        return statistics.median_low(counted) if counted else None

    def add(self, quotient: float | None) -> None:
        """Ends a step, with its quotient if it could be measured."""
        self.steps += 1
        if quotient is not None:
            self.quotients.append(quotient)
            self._due = sum(step < self.steps for step in MEASURED)

    def state(self) -> dict:
        found = self._found if self.frozen else None
        return dict(quotients=list(self.quotients), steps=self.steps, due=self._due, found=found)

    def load(self, state: dict) -> None:
        self.quotients = [float(x) for x in state['quotients']]
        self.steps, self._due = int(state['steps']), int(state['due'])
        if state.get('found') is not None:  # for good, also if that run had fewer steps
            self._kept, self.length = float(state['found']), min(STEPS, self.steps)


class Calibration:
    """Sets the weights of the terms that have a target instead of a number.

    In :data:`MEASURED` of its first active steps a term's gradient is compared with that of the
    student's own losses (before ``task_weight``), on the student's trainable parameters that both
    reach. The step's own graph is used, so nothing runs twice but two backward passes, and random
    states, gradients and buffers stay as they are.

    A term whose every gate is closed adds nothing and is not measured: its steps count from the
    first one with an open gate. Until then one number is read from the device in each step.

    Args:
        terms: all terms of a distiller.
        own: name of the submodule whose parameters are not the student's.
    """

    def __init__(self, terms: Sequence[Term], own: str) -> None:
        self.own = own
        self.gauges = {term.name: Gauge(term.target) for term in terms if term.target is not None}
        self.task_norms: list[float] = []  # of the task's gradient, as this process measured it

    def is_open(self, term: Term) -> bool:
        """Whether the term's weight is still being found."""
        gauge = self.gauges.get(term.name)
        return gauge is not None and not gauge.frozen

    def limit(self, term: Term, turns: int, left: int) -> None:
        """Tells in how many steps (``turns``) of the run a term acts: its weight is a number after
        those. Fewer are ``left`` in a resumed run.

        Raises:
            CalibrationError: it acts in none.
        """
        if not self.is_open(term):
            return
        if turns == 0:
            raise CalibrationError(
                f"{term.where} has weight='auto' and acts in no iteration of this run: look at "
                'begin, end and interval, or give it a number.'
            )
        gauge = self.gauges[term.name]
        length = gauge.steps + left
        if not 0 < length < STEPS:  # 0: it ended before the run was resumed
            return
        gauge.length = length
        if left:
            print_log(
                f'{term.where} acts in {length} iterations only: its weight is found from these, '
                f'not from {STEPS}.',
                'current',
                logging.WARNING,
            )

    def step(
        self, student: nn.Module, task: dict[str, Any], losses: dict, active: Sequence[Term]
    ) -> None:
        """Measures the terms that are due, and gives open ones the weight found so far.

        Args:
            student: the model that is trained.
            task: what the student returned, before any weight.
            losses: entries of this step, those of the terms included; open ones are changed.
            active: terms that act in this step.

        Raises:
            CalibrationError: the student's losses or a term have no gradient to measure.
        """
        waiting = [term for term in active if self.is_open(term)]
        waiting = [term for term in waiting if not self._rests(term, losses)]
        if not torch.is_grad_enabled():  # somebody only looks at the losses
            for term in waiting:
                if self.gauges[term.name].weight is None:
                    losses[f'loss_{term.name}'] = term.idle()
            return
        due = [term for term in waiting if self.gauges[term.name].is_due]
        reference = self._task_norms(student, task) if due else None
        for term in waiting:
            self._step(student, term, losses, reference if term in due else None)

    def _rests(self, term: Term, losses: dict) -> bool:
        """Whether nothing of a term was found yet, and all of its gates are closed, on all ranks.

        Its loss is 0, with a gradient of 0, and stays as it is.
        """
        gauge = self.gauges[term.name]
        if not term.gated or gauge.quotients or not torch.is_grad_enabled():
            return False
        value = losses[f'loss_{term.name}'].detach().abs().float().reshape(1)
        if get_world_size() > 1:
            all_reduce(value, 'max')
        if value.item() != 0:  # NaN is not 0
            return False
        gauge.closed += 1
        if gauge.closed == gauge.length:
            print_log(
                f'loss_{term.name}: in its first {gauge.closed} steps every gate of {term.where} '
                'was closed: the teacher was nowhere nearer to the truth than the student. Until '
                'a gate opens the term adds nothing; its weight will be found then.',
                'current',
                logging.WARNING,
            )
        return True

    def _step(
        self, student: nn.Module, term: Term, losses: dict, task: ParameterNorms | None
    ) -> None:
        key, gauge = f'loss_{term.name}', self.gauges[term.name]
        norms = None if task is None else (task, parameter_norms(losses[key], student, self.own))
        gauge.add(None if norms is None else _quotient(*norms, term))
        if gauge.weight is None:
            if gauge.frozen:
                assert norms is not None  # what could not be measured is due again
                raise CalibrationError(_useless(term, *norms))
            losses[key] = term.idle()  # not times 0: a gradient may be infinite
            return
        losses[key] = losses[key] * (gauge.weight * term.ramp / term.current_weight)
        term.weight = gauge.weight
        if gauge.frozen:
            print_log(
                f'loss_{term.name}: weight={term.weight:g}, found in {gauge.steps} steps: '
                f'{gauge.target:g} times the gradient of the task. To repeat it without '
                f'measuring: {flag_text(term.name, f"{term.weight:g}")}, or weight={term.weight:g} '
                f'in {term.where}.',
                'current',
            )

    def _task_norms(self, student: nn.Module, task: dict[str, Any]) -> ParameterNorms:
        norms = parameter_norms(total(task), student, self.own)
        if not norms.is_finite:
            return norms  # of this batch; a NaN of the student's own is told elsewhere
        if not norms.reached.any():
            raise CalibrationError(
                f"The student's own losses ({', '.join(task)}) reach none of its trainable "
                "parameters, so weight='auto' has nothing to compare a term with. Give numbers: "
                'weight=1.0.'
            )
        self.task_norms.append(norms.norm(norms.reached))
        return norms

    def state(self) -> dict[str, dict]:
        """What a resumed run needs to go on exactly, in plain values."""
        return {name: gauge.state() for name, gauge in self.gauges.items()}

    def load(self, state: dict[str, dict], terms: Sequence[Term]) -> None:
        """Restores :meth:`state`; terms that it does not know are measured anew."""
        for term in terms:
            if term.name in self.gauges and term.name in state:
                gauge = self.gauges[term.name]
                gauge.load(state[term.name])
                if gauge.weight is not None:
                    term.weight = gauge.weight


def total(losses: dict[str, Any]) -> Tensor:
    """The scalar that MMEngine makes of a dict of losses."""
    values: list[Any] = [
        sum(x.mean() for x in value) if isinstance(value, (list, tuple)) else value.mean()
        for key, value in losses.items()
        if 'loss' in key
    ]
    return sum(values)


def _quotient(task: ParameterNorms, own: ParameterNorms, term: Term) -> float | None:
    """log(task / term) of a term of weight 1; None where one of them is 0 or not finite."""
    both = task.reached & own.reached
    reference, norm = task.norm(both), own.norm(both) / term.current_weight
    if not (math.isfinite(reference) and math.isfinite(norm)):
        return None
    return math.log(reference / norm) if 0 < reference and norm > ROUNDING * reference else None


def _useless(term: Term, task: ParameterNorms, own: ParameterNorms) -> str:
    both = task.reached & own.reached
    if not own.reached.any():
        why = "its gradient reaches none of the student's trainable parameters"
    elif not both.any():
        why = 'it reaches no parameter that the losses of the task reach, too'
    else:
        norms = own.norm(both) / term.current_weight, task.norm(both)
        why = 'its gradient was {:g}, that of the task {:g}'.format(*norms)
    return (
        f'{term.where}: no weight could be found in its first steps: {why}. '
        'A term that is 0 at first (teacher and student alike, no positives) may begin later '
        '(begin=...); or give it a number (weight=1.0).'
    )
