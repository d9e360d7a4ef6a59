"""When the numbers of a run are worth a warning, and what it says.

Every function returns the text of a warning, or None. The reasons for the thresholds are in
``docs/usage.md``, "What the run tells you".
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, median

from ..terms.base import Term
from ..weights import AUTO, TARGETS
from ..weights.wishes import flag_text
from .series import BLOCK, LONG, Series

LARGE_GRADIENT, SMALL_GRADIENT = 10.0, 0.005  # in multiples of the task's
LARGE_LOSS, SMALL_LOSS = 50.0, 1e-4  # in multiples of the task's losses
STUCK_LOSS = 5.0  # the same, beside a task that has not moved since the start
PROPOSED_LOSS = 3.0  # of a term that was too large; KD is best near 1, GDD near 10
GROWN = 10.0  # loss of an automatic weight in multiples of what it was when that was found
LEAST_TASK = 0.5  # a task learnt by heart is no measure
UPDATES = 40  # with the term, before clipping is judged
CLIPPED, CLIPPED_PART = 2.0, 0.9  # median norm by max_norm; part of the updates above max_norm
RISEN, ALONE = 1.5, 10  # median norm with the term by that without it, in so many updates
# Where no updates without the term exist, it must be this many times the task to be blamed.
DOMINANT_LOSS, DOMINANT_GRADIENT = 10.0, 2.0
NORMALISING = 5.0  # a smaller max_norm clips a student alone, too


@dataclass
class Watched:
    """What was seen of one term.

    Attributes:
        term: the term.
        task: the sum of the student's own losses; the same for all terms.
        loss: the term's loss, divided by the weight of its iteration.
        gradient: its gradient at full weight in multiples of the task's; None if not measured.
        full: iterations in which at least half of its weight was in force.
        from_start: whether its first iteration was seen.
        acted: whether it has acted since the last update of the parameters.
        norms: norms of the last updates with it.
        norms_without: of the last ones without it.
    """

    term: Term
    task: Series
    loss: Series = field(default_factory=Series)
    gradient: float | None = None
    full: int = 0
    from_start: bool = False
    acted: bool = False
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=BLOCK))
    norms_without: deque[float] = field(default_factory=lambda: deque(maxlen=BLOCK))

    @property
    def weighted(self) -> float:
        """Level of the loss at its full weight."""
        return self.loss.last * self.term.weight

    @property
    def scale(self) -> float:
        """The highest level of the task's losses, so that one learnt by heart is no alarm."""
        return max(self.task.highest if self.task.count else 0.0, LEAST_TASK)

    @property
    def ratio(self) -> float:
        """Loss of the term at full weight by that of the task; 0 if the task has none."""
        return self.weighted / self.scale if self.task.count else 0.0

    def advice(self, number: float) -> str:
        """What to type, with two digits."""
        term = self.term
        plain_auto = term.config.weight.is_auto and term.config.weight.ratio is None
        auto = '' if plain_auto else f' or {flag_text(term.name, AUTO)}'
        flag = flag_text(term.name, f'{float(f"{number:.2g}"):g}')
        return f'Try {flag}{auto} (weight in {term.where}).'


def zero(seen: Watched) -> str | None:
    """Of a term that has never been anything else."""
    if seen.loss.count < BLOCK or not seen.loss.is_zero:
        return None
    return (
        f'it was exactly 0 in all of its {seen.loss.count} iterations. Does the teacher give what '
        'the student gives (one model for both)? Are no rows selected (no positives, classes that '
        'do not meet)? Is the map a single position, over which CWD and GDD take a softmax?'
    )


def proportion(seen: Watched, is_clipped: bool) -> str | None:
    """Of a term that is far too large or too small beside the task.

    Where the gradients were measured, they count: a loss has no natural size. Elsewhere it matters
    whether something clips them.
    """
    if seen.loss.is_zero:
        return None
    if seen.gradient is not None:
        return _out_of_target(seen) or _grown(seen)
    return _too_large(seen, is_clipped) or _too_small(seen) if seen.task.count else None


def _out_of_target(seen: Watched) -> str | None:
    if seen.gradient is None or SMALL_GRADIENT < seen.gradient < LARGE_GRADIENT:
        return None
    usual = TARGETS.get(seen.term.kind, TARGETS['feature'])
    effect = 'crowds out the task' if seen.gradient > 1 else 'has hardly any effect'
    return (
        f'its gradient is {seen.gradient:.2g} times that of the task, as measured when its weight '
        f'was found: it {effect}. {seen.advice(seen.term.weight * usual / seen.gradient)}'
    )


def _grown(seen: Watched) -> str | None:
    first, last = seen.loss.first, seen.loss.last
    if not seen.from_start or last <= GROWN * first or seen.ratio <= 1 or first == 0:
        return None
    return (
        f'it has grown from {first * seen.term.weight:.3g} to {seen.weighted:.3g} since its weight '
        f'was found. {seen.advice(seen.term.weight * first / last)} Or let it begin later '
        '(begin=...): its weight is found when it begins.'
    )


def _too_large(seen: Watched, is_clipped: bool) -> str | None:
    if seen.ratio < STUCK_LOSS:
        return None
    beside = (
        f'it is {seen.weighted:.3g} at its full weight beside {seen.scale:.3g} of the task, '
        f'{seen.ratio:.0f} times as much, '
    )
    advice = seen.advice(PROPOSED_LOSS * seen.term.weight / seen.ratio)
    if seen.ratio >= LARGE_LOSS and not is_clipped:
        return f'{beside}and no clip_grad limits the steps. Such runs have ended in NaN. {advice}'
    if seen.ratio >= STUCK_LOSS and seen.task.is_still:
        moved = f'the losses of the task have not moved in {seen.task.count} iterations'
        return f'{beside}and {moved}. {advice}'
    return None


def _too_small(seen: Watched) -> str | None:
    loss, task = seen.loss.last, seen.task.last
    # A loss that is small by itself is one in which the student agrees with the teacher.
    if seen.loss.count < BLOCK or seen.weighted >= SMALL_LOSS * task or loss < 0.01 * task:
        return None
    return (
        f'it is {seen.weighted:.2g} beside {task:.3g} of the task: its weight makes it too small '
        f'to matter ({seen.term.weight:g}; without it the loss is {loss:.3g}). '
        f'{seen.advice(0.1 * task / loss)}'
    )


def clipping(seen: Watched, limit: float) -> str | None:
    """Of a term for whose sake clipping at ``limit`` scales the task's gradient down."""
    norms = seen.norms
    if len(norms) < UPDATES or median(norms) < CLIPPED * limit:
        return None
    if sum(norm > limit for norm in norms) < CLIPPED_PART * len(norms):
        return None
    blame = _blame(seen, limit)
    if blame is None:
        return None
    why, number = blame
    norm = fmean(norms)
    return (
        f"clipping takes most of the task's gradient: grad_norm is {norm:.3g} on average in the "
        f'last {len(norms)} updates with the term, clip_grad has max_norm={limit:g}, so the '
        f"task's own gradient is scaled down {norm / limit:.2g} times. {why} {seen.advice(number)}"
    )


def _blame(seen: Watched, limit: float) -> tuple[str, float] | None:
    """Why the term and not the task is large, and a better weight; None if nobody knows."""
    norm, weight = median(seen.norms), seen.term.weight
    if len(seen.norms_without) >= ALONE:
        alone = median(seen.norms_without)
        if norm < RISEN * alone:
            return None
        part = math.sqrt(norm**2 - alone**2)  # gradients are nearly orthogonal
        why = f'In updates without the term grad_norm was {alone:.3g}.'
        return why, weight * max(alone, limit) / part
    if seen.gradient is not None:
        if seen.gradient < DOMINANT_GRADIENT:
            return None
        why = f'The gradient of the term is {seen.gradient:.2g} times that of the task.'
    elif seen.ratio >= DOMINANT_LOSS and limit >= NORMALISING:
        why = f'The term is {seen.ratio:.0f} times the losses of the task.'
    else:
        return None
    return why, weight * limit / norm


def still(seen: Watched) -> str | None:
    """Of a term that has stayed where it was, though there is something to learn."""
    loss = seen.loss
    if not seen.from_start or seen.full < LONG or not loss.is_still:
        return None
    if not seen.task.count or seen.weighted < 0.1 * seen.task.last:
        return None  # the student agrees with the teacher, or the task is not learnt from
    return (
        f'it does not move: without its weight it was {loss.first:.4g} at first and is '
        f'{loss.last:.4g} after {loss.count} iterations, less apart than its noise. Look in the '
        'plan whether its place in the student is trained. If it is, its gradient may be too '
        f'small. {seen.advice(10 * seen.term.weight)}'
    )


def not_finite(seen: Watched) -> str:
    """What to add to the error of a run that ends in NaN; empty if the term was not large."""
    if seen.gradient is not None or not seen.loss.count or seen.ratio < STUCK_LOSS:
        return ''
    return (
        f'Before, loss_{seen.term.name} was {seen.ratio:.0f} times the losses of the task. '
        f'{seen.advice(PROPOSED_LOSS * seen.term.weight / seen.ratio)}'
    )
