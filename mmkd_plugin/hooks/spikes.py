"""Keeps single steps with an outsized gradient from ruining a student that nothing clips."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ..checks import shown
from ..distiller import ATTRIBUTE, Distiller
from ..weights import AUTO
from .connector_steps import LARGEST, ConnectorLimit
from .optimizer_step import BeforeStep
from .runner_model import members, student_of

SPIKE = 20.0  # a gradient of so many times the usual norm is scaled down to that (docs/weights.md)
OFTEN = 0.1  # part of the updates from which on it is no matter of single steps


class SpikeLimit:
    """Scales the student's gradient down in steps in which it is far above its usual norm.

    mmdet's default optimizer clips nothing. In some of the first steps of a new detector the
    gradient of its own losses is a hundred times what it is in the others, and one such step can
    leave dead layers or NaN. A run that finds weights has measured the usual norm: the median of
    the task's gradient in those steps. :data:`SPIKE` times that is the limit from the moment in
    which the first weight is a number for good.

    Connectors have a limit of their own, from the first step on: see :class:`ConnectorLimit`.

    All other steps are left as they are, bit for bit, and so are optimizers with ``clip_grad`` and
    runs that find no weights. Several optimizers are limited one by one. The limits act in the
    optimizer's step, after the gradients of several ranks are averaged, and wait for no device.

    Args:
        wish: ``'auto'``, ``False`` for no limit, or the limit as a number.
    """

    def __init__(self, wish: str | float) -> None:
        self.wish = checked(wish)
        self._reset()

    def _reset(self) -> None:
        self._max_norm = None if self.wish in (AUTO, False) else float(self.wish)
        self._is_unknown = False  # the measurements of a run that is resumed are not to be had
        self._handles: list[BeforeStep] = []
        self._connectors: list[ConnectorLimit] = []
        self._finds = False  # whether this run finds weights
        self._steps = 0
        self._limited: Tensor | None = None  # in how many of the steps; on the device

    @property
    def max_norm(self) -> float | None:
        """The limit that is in force; None where there is none, or none yet."""
        return self._max_norm if self._handles else None

    def begin(self, runner: Runner) -> None:
        """Hooks into the optimizers that nothing clips.

        Call it when they are built and nothing is left to be loaded.
        """
        if self.wish is False or self._handles:
            return
        student = student_of(runner)
        added, own = [], set()
        for name, parameter in student.named_parameters():
            if name.startswith(f'{ATTRIBUTE}.'):
                added.append((name, parameter))
            else:
                own.add(id(parameter))
        distiller = getattr(student, ATTRIBUTE, None)
        self._finds = distiller is not None and bool(distiller.calibration.gauges)
        for wrapper in members(runner.optim_wrapper):
            if not wrapper.clip_grad_kwargs:
                groups: Iterable[dict] = wrapper.optimizer.param_groups
                params = [p for group in groups for p in group['params'] if id(p) in own]
                connectors = ConnectorLimit(added)
                hook = self._hook(params, connectors)
                self._connectors.append(connectors)
                self._handles.append(BeforeStep(wrapper.optimizer, hook))
        if self._handles and self._max_norm is not None:
            print_log(f'Gradients above {self._max_norm:g} are scaled down to it.', 'current')
        elif self.wish != AUTO and not self._handles:
            print_log(_idle(self.wish), 'current', logging.WARNING)

    def update(self, distiller: Distiller) -> None:
        """Takes the limit from what was measured, once the first weight is found."""
        norms = distiller.calibration.task_norms
        gauges = distiller.calibration.gauges.values()
        if not self._handles or self._max_norm is not None or self._is_unknown:
            return
        if not norms or not any(gauge.frozen for gauge in gauges):
            return
        # Before task_weight: where that is small, most of a step's gradient is the terms'.
        usual = median(norms)
        if usual > 0:
            self._max_norm = float(f'{SPIKE * usual:.3g}')
            print_log(_found(self._max_norm, usual), 'current')

    def end(self) -> None:
        """Gives the optimizers back, and tells how often the limit was met."""
        for handle in self._handles:
            handle.remove()
        if self._limited is not None and self._max_norm is not None:
            count = int(self._limited)
            level = logging.WARNING if count > OFTEN * self._steps else logging.INFO
            print_log(_met(self._max_norm, count, self._steps), 'current', level)
        slowed = max((int(x.limited) for x in self._connectors if x.limited is not None), default=0)
        if slowed:
            print_log(_slowed(slowed), 'current')
        self._reset()

    def state(self, distiller: Distiller) -> dict[str, Any]:
        """What a resumed run needs to go on exactly; empty where there is nothing to know."""
        found = self._max_norm if self.wish == AUTO else None
        if self._is_unknown or (found is None and not distiller.calibration.gauges):
            return {}
        norms = list(distiller.calibration.task_norms)
        return dict(spikes=dict(max_norm=found, task_norms=norms))

    def load(self, state: dict, distiller: Distiller) -> None:
        """Restores :meth:`state`, but for the limit where this run was told another."""
        saved, gauges = state.get('spikes'), distiller.calibration.gauges.values()
        if saved is None:
            self._is_unknown = any(gauge.steps for gauge in gauges)
            return
        distiller.calibration.task_norms = list(saved['task_norms'])
        then = saved['max_norm']
        if self.wish == AUTO:
            self._max_norm = then
        elif then is not None and then != self.wish:
            print_log(_other(then, self.wish), 'current', logging.WARNING)

    def _hook(self, params: list[nn.Parameter], connectors: ConnectorLimit) -> Any:
        def before_step(optimizer: torch.optim.Optimizer) -> None:
            # Set by a GradScaler that leaves dividing by its scale, and skipping, to the optimizer.
            scale: Tensor | None = getattr(optimizer, 'grad_scale', None)
            counts: Tensor | None = None
            if scale is not None:
                counts = getattr(optimizer, 'found_inf', torch.zeros_like(scale)) == 0
            if self._finds or self._max_norm is not None:
                connectors.before_step(optimizer.param_groups, scale, counts)
            if self._max_norm is None:
                return
            if scale is None:
                above = nn.utils.clip_grad_norm_(params, self._max_norm) > self._max_norm
            else:
                above = _limit_scaled(params, self._max_norm * scale)
                above = above if counts is None else above & counts
            self._limited = above.long() if self._limited is None else self._limited + above
            self._steps += 1

        return before_step


def _limit_scaled(params: list[nn.Parameter], limit: Tensor) -> Tensor:
    """Clips to a norm on the device, which ``clip_grad_norm_`` would wait for."""
    norm = nn.utils.clip_grad_norm_(params, math.inf)
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for parameter in params:
        if parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.dtype))
    return norm > limit


def checked(wish: Any) -> str | float:
    """The key ``limit_spikes``, as it was given.

    Raises:
        ValueError: anything else than ``'auto'``, ``False`` and a number above 0.
    """
    if wish is False or (isinstance(wish, str) and wish == AUTO):
        return wish
    number = isinstance(wish, (int, float)) and not isinstance(wish, bool)
    if not (number and 0 < wish < math.inf):
        raise ValueError(
            f"limit_spikes={shown(wish)} must be 'auto', False for no limit, or the norm to which "
            'gradients are limited, a number above 0.'
        )
    return wish


def _found(limit: float, usual: float) -> str:
    return (
        f"Nothing clips this run's gradients. The usual norm of the task's is {usual:.2g}, so a "
        f'step in which the student has more than {limit:g} ({SPIKE:g} times that) is scaled down '
        'to it: single steps with an outsized gradient can ruin a student. For the same in a run '
        f'without a teacher: clip_grad=dict(max_norm={limit:g}) in optim_wrapper. To leave the '
        'steps as they are: limit_spikes=False in the DistillHook, or --limit-spikes off.'
    )


def _met(limit: float, count: int, steps: int) -> str:
    text = f'The gradient was above {limit:g} and scaled down to it in {count} of {steps} updates.'
    if count > OFTEN * steps:
        text += (
            ' So many are no single spikes: training is unstable, or its gradients have grown. '
            'Look at the losses, lower the learning rate, or clip in optim_wrapper.'
        )
    return text


def _slowed(count: int) -> str:
    return (
        f'Learning rate times gradient of a connector was above {LARGEST:g} of its own size in '
        f'{count} updates, and scaled down to that. The weight of a term multiplies it, too.'
    )


def _idle(wish: str | float) -> str:
    return (
        f'limit_spikes={wish!r} has no effect: optim_wrapper has a clip_grad, or is of a kind '
        'whose optimizer is not known.'
    )


def _other(then: float, now: str | float) -> str:
    return (
        'The run goes on with another limit than it was saved with: '
        f'limit_spikes: {then:g} then, {now!r} now.'
    )
