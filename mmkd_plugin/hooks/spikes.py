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

    All other steps are left as they are, bit for bit, and so are runs with ``clip_grad`` and runs
    that find no weights. Connectors are not limited: their gradients have a size of their own. It
    acts in the optimizer's step, after the gradients of mixed precision are scaled back and those
    of several ranks are averaged, and waits for no device.

    Args:
        wish: ``'auto'``, ``False`` for no limit, or the limit as a number.
    """

    def __init__(self, wish: str | float) -> None:
        self.wish = checked(wish)
        self.max_norm = None if wish in (AUTO, False) else float(wish)
        self._handles: list[Any] = []
        self._steps = 0
        self._limited: Tensor | None = None  # in how many of the steps; on the device

    @property
    def acts(self) -> bool:
        """Whether this run has a limit, or may find one."""
        return bool(self._handles)

    def begin(self, runner: Runner) -> None:
        """Hooks into the optimizers, unless the run does without: call it when they are built."""
        wrappers = members(runner.optim_wrapper)
        if self.wish is False or self.acts or any(w.clip_grad_kwargs for w in wrappers):
            return
        named = student_of(runner).named_parameters()
        own = {id(p) for name, p in named if not name.startswith(f'{ATTRIBUTE}.')}
        for wrapper in wrappers:
            optimizer = wrapper.optimizer
            groups: Iterable[dict] = optimizer.param_groups
            params = [p for group in groups for p in group['params'] if id(p) in own]
            self._handles.append(optimizer.register_step_pre_hook(self._hook(params)))

    def update(self, distiller: Distiller) -> None:
        """Takes the limit from what was measured, once the first weight is found."""
        norms = distiller.calibration.task_norms
        weight, gauges = distiller.task_weight, distiller.calibration.gauges.values()
        if not self.acts or self.max_norm is not None or not norms or isinstance(weight, str):
            return
        usual = weight * median(norms)
        if usual > 0 and any(gauge.frozen for gauge in gauges):
            self.max_norm = float(f'{SPIKE * usual:.3g}')
            print_log(_found(self.max_norm, usual), 'current')

    def end(self) -> None:
        """Gives the optimizers back, and tells how often the limit was met."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._limited is not None and self.max_norm is not None:
            count = int(self._limited)
            level = logging.WARNING if count > OFTEN * self._steps else logging.INFO
            print_log(_met(self.max_norm, count, self._steps), 'current', level)
        self._limited, self._steps = None, 0

    def state(self, distiller: Distiller) -> dict[str, Any]:
        """What a resumed run needs to go on exactly; empty where nothing is to be found."""
        if not distiller.calibration.gauges:
            return {}
        norms = list(distiller.calibration.task_norms)
        return dict(spikes=dict(max_norm=self.max_norm, task_norms=norms))

    def load(self, state: dict, distiller: Distiller) -> None:
        """Restores :meth:`state`, but for a limit where this run was given its own."""
        saved = state.get('spikes', {})
        distiller.calibration.task_norms = list(saved.get('task_norms', []))
        if self.wish == AUTO and saved.get('max_norm') is not None:
            self.max_norm = float(saved['max_norm'])

    def _hook(self, params: list[nn.Parameter]) -> Any:
        def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if self.max_norm is None:
                return
            # A fused optimizer divides by the scale of mixed precision itself.
            scale = getattr(optimizer, 'grad_scale', None)
            limit: Any = self.max_norm if scale is None else self.max_norm * scale
            above = nn.utils.clip_grad_norm_(params, limit) > limit
            self._limited = above.long() if self._limited is None else self._limited + above
            self._steps += 1

        return before_step


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
        f'without a teacher: optim_wrapper.clip_grad.max_norm={limit:g}. To leave the steps as '
        'they are: limit_spikes=False in the DistillHook, or --limit-spikes off.'
    )


def _met(limit: float, count: int, steps: int) -> str:
    text = f'The gradient was above {limit:g} and scaled down to it in {count} of {steps} updates.'
    if count > OFTEN * steps:
        text += (
            ' So many are no single spikes: training is unstable, or its gradients have grown. '
            'Look at the losses, lower the learning rate, or clip in optim_wrapper.'
        )
    return text
