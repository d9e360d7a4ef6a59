"""The model of a Runner: found below its wrappers, then wrapped and optimized with connectors.

A :class:`~mmengine.runner.Runner` keeps wrapper, optimizer and schedulers itself; those of a
``FlexibleRunner`` are its strategy's, and are the same objects.
"""

from __future__ import annotations

import copy
import gc
from typing import Any

from mmengine._strategy import SingleDeviceStrategy
from mmengine.model import is_model_wrapper
from mmengine.optim import BaseOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ..distiller import Distiller
from ..taps import TapError

# Wrappers that leave no ordinary student below them, and why.
_UNFIT = {
    'FullyShardedDataParallel': (
        "it spreads the student's parameters over the ranks, so a hook can neither run a probe "
        'image nor add connectors'
    ),
    'MMSeparateDistributedDataParallel': (
        'it wraps each part of the student by itself, so module paths are no longer those of the '
        'config'
    ),
}


def student_of(runner: Runner) -> nn.Module:
    """The model that is trained, without the wrapper that a Runner put around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def members(wrapper: Any) -> list[OptimWrapper]:
    """The wrappers of single optimizers; none where they are of a kind that is not known."""
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each for each in wrappers if isinstance(each, OptimWrapper)]


def refuse_unfit_model(runner: Runner) -> None:
    """Refuses strategies and wrappers under which the student cannot be distilled.

    Raises:
        ValueError: naming the strategy or wrapper, the reason, and what to take.
    """
    strategy = getattr(runner, 'strategy', None)
    if strategy is not None and not isinstance(strategy, SingleDeviceStrategy):  # or DDPStrategy
        raise ValueError(
            f"DistillHook does not work with {type(strategy).__name__}: it hands the student's "
            'parameters and their optimizer over to an engine of its own before a hook can add '
            'connectors. Take SingleDeviceStrategy or DDPStrategy.'
        )
    for name in _class_names(runner.model):
        if name in _UNFIT:
            raise ValueError(
                f'DistillHook does not work with a model in {name}: {_UNFIT[name]}. Take '
                'MMDistributedDataParallel (the default), or DDPStrategy with a FlexibleRunner.'
            )
    student = student_of(runner)
    if is_model_wrapper(student):
        raise ValueError(
            f'The model is wrapped twice ({type(runner.model).__name__} around '
            f'{type(student).__name__}); DistillHook looks for the student below one wrapper.'
        )
    if hasattr(student, '_orig_mod'):
        raise ValueError(
            'The model was given as torch.compile(model), below which module paths are not those '
            'of the config. Give the model itself, and compile=True in the config: that compiles '
            'its training step, distillation included.'
        )


def _class_names(instance: Any) -> list[str]:
    return [cls.__name__ for cls in type(instance).__mro__]


def refuse_traced(runner: Runner, distiller: Distiller) -> None:
    """Refuses taps inside a part whose forward the Runner is going to replace.

    Raises:
        TapError: naming the part, whose own output can be tapped.
    """
    parts = runner.cfg.get('efficient_conv_bn_eval') or []
    for term in distiller.terms:
        for point in term.student.heard():
            for part in [parts] if isinstance(parts, str) else parts:
                if point.path.startswith(f'{part}.'):
                    raise TapError(
                        f'{term.where}: the student tap {point.path!r} lies inside {part!r}, whose '
                        'forward efficient_conv_bn_eval replaces by one that calls its layers no '
                        f'more. Tap {part!r} itself or a later module, or take {part!r} out of '
                        'efficient_conv_bn_eval.'
                    )


def include_connectors(runner: Runner, student: nn.Module, connectors: nn.Module) -> None:
    """Lets DDP, optimizer and schedulers see the connectors.

    Where the Runner knows the configs, optimizer and schedulers are built anew, so that
    ``paramwise_cfg`` holds for connectors, too. Otherwise connectors join the optimizer.

    Raises:
        ValueError: for an optimizer that was given finished and that they cannot join.
    """
    config = _optim_config(runner)
    group = _common_group(runner.optim_wrapper) if config is None else None
    if is_model_wrapper(runner.model):
        _wrap_again(runner, student)
    if config is not None:
        _build_again(runner, config)
        return
    assert group is not None
    named = [(name, p) for name, p in connectors.named_parameters() if p.requires_grad]
    group['params'].extend(p for _, p in named)
    if 'param_names' in group:
        group['param_names'].extend(f'distiller.{name}' for name, _ in named)


def _optim_config(runner: Runner) -> dict | None:
    """What the optimizer was built from. A Runner forgets it unless it has its whole config."""
    config, schedulers = (runner.cfg.get(key) for key in ('optim_wrapper', 'param_scheduler'))
    if not isinstance(config, dict):
        return None
    forgotten = schedulers is None and runner.param_schedulers is not None
    return None if forgotten else config


def _common_group(optim_wrapper: BaseOptimWrapper) -> dict:
    """The group of a built optimizer that connectors join; schedulers go on with it."""
    advice = (
        'The terms add trainable connectors, but the Runner no longer knows the config of its '
        'optimizer, and {}. Build it with Runner.from_cfg, or give it cfg=dict(optim_wrapper=..., '
        'param_scheduler=...) too: then optimizer and schedulers are built again.'
    )
    if isinstance(optim_wrapper, OptimWrapperDict):
        names = ', '.join(optim_wrapper.keys())
        raise ValueError(advice.format(f'which of its optimizers ({names}) trains them is open'))
    optimizer = optim_wrapper.optimizer
    if 'ZeroRedundancyOptimizer' in _class_names(optimizer):
        raise ValueError(advice.format('ZeroRedundancyOptimizer has spread its parameters already'))
    # Others, such as a group's name, are the user's own and change no step.
    known = (*optimizer.defaults, 'initial_lr')
    first, *others = ({k: group.get(k) for k in known} for group in optimizer.param_groups)
    for other in others:
        if other != first:
            key = next(k for k in known if other[k] != first[k])
            raise ValueError(
                advice.format(
                    f'its groups differ ({key}={first[key]!r} and {other[key]!r}), so which '
                    'of them they belong to is not said'
                )
            )
    return optimizer.param_groups[0]


def _wrap_again(runner: Runner, student: nn.Module) -> None:
    strategy = getattr(runner, 'strategy', None)
    owner = runner if strategy is None else strategy
    runner.model = owner.model = student
    gc.collect()  # the old wrapper's gradient hooks go with it
    # Converting again would replace every SyncBatchNorm, and with it the hooks of its taps.
    settings = runner.cfg if strategy is None else vars(strategy)
    sync_bn = settings.get('sync_bn')
    if sync_bn is not None:
        settings['sync_bn'] = None
    if strategy is None:
        wrapper = copy.deepcopy(runner.cfg.get('model_wrapper_cfg'))
        runner.model = runner.wrap_model(wrapper, student)
    else:
        model = strategy._wrap_model(student)
        options = dict(target='train_step') if runner._compile is True else runner._compile
        if isinstance(options, dict):
            options = dict(dict(target='train_step'), **options)
        runner.model = strategy.model = strategy.compile_model(model, options)
    if sync_bn is not None:
        settings['sync_bn'] = sync_bn


def _build_again(runner: Runner, config: dict) -> None:
    config = copy.deepcopy(config)
    schedulers = copy.deepcopy(runner.cfg.get('param_scheduler'))
    strategy = getattr(runner, 'strategy', None)
    if strategy is None:
        runner.optim_wrapper = runner.build_optim_wrapper(config)
        runner.param_schedulers = schedulers
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(schedulers)
        return
    wrapper = strategy.build_optim_wrapper(config, strategy.model)
    runner.optim_wrapper = strategy.optim_wrapper = wrapper
    strategy.param_schedulers = schedulers
    strategy._scale_lr()
    if schedulers is not None:
        runner.param_schedulers = strategy.build_param_scheduler(schedulers, wrapper)
        strategy.param_schedulers = runner.param_schedulers
    else:
        del strategy.param_schedulers  # it would be saved
    if getattr(wrapper, '_accumulative_counts', 1) > 1:  # a Runner does so by itself, afterwards
        wrapper.initialize_count_status(strategy.model, 0, strategy.dispatch_kwargs['max_iters'])
