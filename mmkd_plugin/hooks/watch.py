"""Looks at the numbers of a distilled run, and warns of terms that do harm or nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from ..distiller import Distiller
from ..terms.base import Term
from . import verdicts
from .runner_model import members
from .series import BLOCK, START, Series
from .verdicts import Watched

_MORE = 'To measure this without training: mmkd doctor CONFIG.'


class Watch:
    """Warns where the numbers of the log say that a term does harm, or nothing.

    It looks at each term after 5, 50, 100, 200, 400 ... iterations in which the term has acted,
    at numbers that MMEngine has fetched for the log; it reads nothing from the device. Each kind
    of warning comes at most once for each term. All of that begins anew with a resumed run.

    Args:
        distiller: whose terms are watched.
    """

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller
        self.task = Series()
        self.seen = {term.name: Watched(term, self.task) for term in distiller.terms}
        self._told: set[tuple[str, str]] = set()
        self._is_first = True

    def after_train_iter(self, runner: Runner, outputs: Mapping[str, Any] | None) -> None:
        """Takes the numbers of an iteration, once they are in the log of the main process.

        Args:
            runner: the Runner.
            outputs: what the step returned; its keys tell which numbers are new.
        """
        if not outputs or not is_main_process():
            return
        logged = runner.message_hub.log_scalars
        keys = [key for key in outputs if 'loss' in key and f'train/{key}' in logged]
        losses = {key: float(logged[f'train/{key}'].current()) for key in keys}
        acted = self._add(losses, runner.iter, runner.epoch)
        limit = max_norm(runner.optim_wrapper)
        if limit is not None and runner.optim_wrapper.should_update():
            history = logged.get('train/grad_norm')
            if history is not None:
                self._add_norm(float(history.current()))
        is_clipped = any(wrapper.clip_grad_kwargs for wrapper in members(runner.optim_wrapper))
        for seen in acted:
            if _is_time(seen.loss.count):
                self._look(seen, limit, is_clipped)

    def explain_nan(self, key: str) -> str:
        """What is known of the term with an entry of the log that has become NaN or Inf."""
        seen = self.seen.get(self.distiller.keys.get(key, ''))
        return '' if seen is None else verdicts.not_finite(seen)

    def _add(self, losses: dict[str, float], iteration: int, epoch: int) -> list[Watched]:
        """Takes the losses, and returns the terms among them."""
        task = task_loss(losses, self.distiller.keys)
        if task > 0 and math.isfinite(task):
            self.task.add(task)
        acted = []
        for seen in self.seen.values():
            term = seen.term
            starts = self._is_first and iteration == 0
            seen.from_start |= starts or not term.schedule.lasts(iteration, epoch)
            value = losses.get(f'loss_{term.name}')
            if not term.active or value is None or not math.isfinite(value):
                continue
            if not self._measure(seen):
                continue
            seen.loss.add(value / (term.weight * term.ramp))
            seen.full += term.ramp >= 0.5
            seen.acted = True
            acted.append(seen)
        self._is_first = False
        return acted

    def _measure(self, seen: Watched) -> bool:
        """Looks up the gradient; False while a weight is sought and the entry means nothing."""
        gauge = self.distiller.calibration.gauges.get(seen.term.name)
        if gauge is None:
            return True
        if gauge.weight is None:
            return False
        seen.gradient = gauge.target * seen.term.weight / gauge.weight
        return True

    def _add_norm(self, norm: float) -> None:
        """Takes the norm of the gradient of an update; not one that AMP has skipped."""
        for seen in self.seen.values():
            if math.isfinite(norm):
                (seen.norms if seen.acted else seen.norms_without).append(norm)
            seen.acted = False

    def _look(self, seen: Watched, limit: float | None, is_clipped: bool) -> None:
        self._tell('zero', seen.term, verdicts.zero(seen))
        self._tell('proportion', seen.term, verdicts.proportion(seen, is_clipped))
        if limit is not None:
            self._tell('clipping', seen.term, verdicts.clipping(seen, limit))
        self._tell('still', seen.term, verdicts.still(seen))

    def _tell(self, kind: str, term: Term, text: str | None) -> None:
        if text is not None and (kind, term.name) not in self._told:
            self._told.add((kind, term.name))
            print_log(f'loss_{term.name}: {text} {_MORE}', 'current', logging.WARNING)


def max_norm(wrapper: Any) -> float | None:
    """The norm to which gradients are clipped; None without it, or where several wrappers write
    into one entry of the log."""
    wrappers = [] if isinstance(wrapper, OptimWrapperDict) else members(wrapper)
    norms = [w.clip_grad_kwargs.get('max_norm') for w in wrappers if w.clip_grad_kwargs]
    return norms[0] if norms and wrapper.grad_name == 'grad_norm' else None


def task_loss(losses: Mapping[str, float], terms: Mapping[str, str]) -> float:
    """The sum of the student's own losses in the log.

    Args:
        losses: entries of the log with 'loss' in the key.
        terms: keys of the terms among them.
    """
    own = sum(value for key, value in losses.items() if key != 'loss' and key not in terms)
    added = sum(value for key, value in losses.items() if key in terms)
    total = losses.get('loss', 0.0)
    # A student with an entry 'loss' of its own has that in the log, in the place of the total.
    return own if math.isclose(total, own + added, rel_tol=1e-3) else own + total


def _is_time(count: int) -> bool:
    """5 iterations, or 50 doubled as often as one likes."""
    blocks, rest = divmod(count, BLOCK)
    return count == START or (rest == 0 and blocks.bit_count() == 1)
