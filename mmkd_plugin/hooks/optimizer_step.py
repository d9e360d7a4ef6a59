"""Something to do before each step of an optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch.optim import Optimizer


class BeforeStep:
    """Calls a function right before each step of an optimizer, with it, until removed.

    The step of the instance is wrapped, as schedulers of the learning rate do. PyTorch's own hooks
    will not do: its compiler switches them off for all optimizers up to version 2.2, as soon as it
    is loaded. What is wrapped last is called first.

    Args:
        optimizer: the optimizer.
        function: what to call.
    """

    def __init__(self, optimizer: Optimizer, function: Callable[[Optimizer], None]) -> None:
        self._optimizer = optimizer
        self._had = vars(optimizer).get('step')
        self._acts = True
        step = optimizer.step

        @functools.wraps(getattr(step, '__func__', step))
        def called(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if self._acts:
                function(optimizer)
            return step(*args, **kwargs)

        self._called = MethodType(called, optimizer)  # a scheduler that comes later wraps a method
        optimizer.step = self._called  # type: ignore[method-assign]

    def remove(self) -> None:
        """Gives the step back, or does nothing in it from now on if it was wrapped again."""
        self._acts = False
        if vars(self._optimizer).get('step') is not self._called:
            return
        if self._had is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._had  # type: ignore[method-assign]
