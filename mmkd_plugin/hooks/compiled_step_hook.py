"""A Runner's compiled training step: what must stay outside of it, and whether it is compiled."""

from __future__ import annotations

import importlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ..checks import check_bool
from ..registry import HOOKS

# How torch's compiler counts what it gave up: 'cache_size_limit reached' (2.1), 'Dynamo recompile
# limit exceeded' (later).
_LIMIT = re.compile(r'limit (reached|exceeded)')


@HOOKS.register_module()
class CompiledStepHook(Hook):
    """Lets ``compile`` of a Runner's config compile the step once, and says where it could not.

    MMEngine hands the whole ``train_step`` to ``torch.compile``, its optimizer wrapper included.
    The wrapper counts the steps in a Python number, which is a constant of compiled code: each step
    is compiled anew, until the compiler gives up and runs the step eagerly. The wrapper for mixed
    precision cannot be compiled at all.

    With this hook the optimizer wrapper (precision, gradient accumulation, backward, clipping,
    optimizer) runs in Python. The data preprocessor, forward and losses are compiled, and with them
    the backward that they need. Without ``compile`` the hook does nothing.

    On a CPU the hook keeps the compiler from turning convolutions to channels-last. In that layout
    oneDNN's weight gradient of a strided 1x1 convolution writes past its memory if the input has
    fewer channels than oneDNN's block, 8 with AVX2 (https://github.com/uxlfoundation/oneDNN, issue
    6035): the run dies, or its gradients are wrong.

    ``DistillHook`` does this for its run; a run without distillation takes this hook by name.

    Args:
        strict: stop the training instead of warning where the compiler has given up, or compiled
            nothing.

    Attributes:
        graphs: how many graphs the last training has compiled.

    Example:
        >>> compile = dict(dynamic=False)
        >>> custom_hooks = [dict(type='mmkd_plugin.CompiledStepHook')]
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = check_bool(strict, 'CompiledStepHook.strict')
        self._replaced: list[tuple[OptimWrapper | nn.Module, str, Any]] = []
        self._waiting: dict[str, Callable] = {}  # compiled functions, while steps run eagerly
        self._start: dict[str, Counter] | None = None  # None: nothing is compiled
        self._stepped = self._told = False
        self.graphs = 0

    def before_train(self, runner: Runner) -> None:
        if not runner.cfg.get('compile') or self._start is not None:
            return
        if self._acting(runner) is not self:
            return
        self._start = {name: Counter(_counters()[name]) for name in ('stats', 'unimplemented')}
        self._stepped = self._told = False
        for wrapper in _wrappers(runner.optim_wrapper):
            self._replace(wrapper, 'update_params', torch.compiler.disable(wrapper.update_params))
            self._replace(wrapper, 'optim_context', _outside(wrapper.optim_context))
        model = runner.model
        if all(parameter.device.type == 'cpu' for parameter in model.parameters()):
            keep_layout = _inductor().patch(layout_optimization=False)
            self._replace(model, 'train_step', keep_layout(model.train_step))

    def run_eagerly(self, runner: Runner, eagerly: bool) -> None:
        """Lets the next steps run without the compiler, or with it again."""
        acting = self._acting(runner)
        if acting is not self:
            acting.run_eagerly(runner, eagerly)
            return
        if self._start is None or eagerly == bool(self._waiting):
            return
        model = runner.model
        if eagerly:
            for name, value in list(vars(model).items()):
                original = getattr(value, '_torchdynamo_orig_callable', None)
                if original is not None:
                    self._waiting[name] = value
                    setattr(model, name, original)
        else:
            for name, value in self._waiting.items():
                setattr(model, name, value)
            self._waiting = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self._start is None or self._told:
            return
        self._stepped = True
        if any(_LIMIT.search(reason) for reason in self._since('unimplemented')):
            self._told = True
            self._count()
            self._complain(
                f'torch.compile has given up in iteration {runner.iter}: a part of the training '
                f'step had to be compiled too often ({self.graphs} graphs so far) and runs eagerly '
                'from now on. The numbers are right, the speed is not. PyTorch has named the '
                'function and what changes in it on stderr; the environment variable '
                'TORCH_LOGS=recompiles shows each time. Leave out compile, or what changes.'
            )

    def after_train(self, runner: Runner) -> None:
        if self._start is None:
            return
        self._count()
        if self.graphs:
            runner.logger.info(f'torch.compile has compiled {self.graphs} graphs.')
        elif self._stepped and not self._waiting:
            self._complain(
                f'compile={runner.cfg.compile!r} has compiled nothing: the training ran eagerly. '
                'Look whether TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE is set.'
            )

    def after_run(self, runner: Runner) -> None:
        for owner, name, value in self._replaced:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        self._replaced, self._start, self._waiting = [], None, {}

    def _acting(self, runner: Runner) -> CompiledStepHook:
        """The hook of this run that does the work: ``DistillHook`` has one inside."""
        return next((hook for hook in runner.hooks if isinstance(hook, CompiledStepHook)), self)

    def _replace(self, owner: OptimWrapper | nn.Module, name: str, value: Any) -> None:
        self._replaced.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, value)

    def _count(self) -> None:
        self.graphs = self._since('stats')['unique_graphs']

    def _since(self, name: str) -> Counter:
        """What one of the compiler's counters has counted since training began."""
        assert self._start is not None, 'before_train notes where they stood'
        return Counter(_counters()[name]) - self._start[name]

    def _complain(self, text: str) -> None:
        if self.strict:
            raise RuntimeError(text)
        print_log(text, 'current', logging.WARNING)


def _counters() -> dict[str, Counter]:
    # Not imported above: it takes a second.
    return importlib.import_module('torch._dynamo.utils').counters


def _inductor() -> Any:
    """The settings of torch's compiler backend."""
    return importlib.import_module('torch._inductor.config')


def _wrappers(wrapper: OptimWrapper) -> Iterator[OptimWrapper]:
    """The wrapper of a Runner and, if it is one of several, its members."""
    yield wrapper
    if isinstance(wrapper, OptimWrapperDict):
        yield from wrapper.values()


def _outside(context: Callable) -> Callable:
    """A function that gives context managers, for a compiled caller: all of them runs in Python.

    The compiler does not go into a ``with`` of something it has not seen made. It gives up the
    function around it, which is the train_step, and compiles what that calls.
    """
    disable = torch.compiler.disable

    class Outside:
        def __init__(self, *args: Any) -> None:
            self.context = context(*args)

        @disable
        def __enter__(self) -> Any:
            return self.context.__enter__()

        @disable
        def __exit__(self, *error: Any) -> Any:
            return self.context.__exit__(*error)

    return disable(lambda *args: Outside(*args))
