"""BatchNorm statistics for students that train on mixed images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ..checks import check_int
from ..registry import HOOKS
from ..rng import rng_kept
from ..taps.foreign import AnyModule
from .runner_model import student_of
from .step_seed_hook import seed_everything


@HOOKS.register_module()
class RecalibrateBNHook(Hook):
    """Re-estimates BatchNorm's running statistics on images that are not mixed.

    With mixup the running mean and variance are those of mixed images, whereas validation shows
    plain ones. Before each validation and each checkpoint this hook replaces them by the average
    over ``num_batches`` training batches, augmented but not mixed, with only the BatchNorm layers
    in training mode (the idea of ``torch.optim.swa_utils.update_bn``). Training itself is not
    touched: running statistics do not enter a training step, and every random state is put back.
    Models without BatchNorm, frozen BatchNorm layers and a teacher are left alone.

    (An ``EMAHook`` averages parameters; its copy's statistics are not re-estimated.)

    Args:
        num_batches: batches per rank, of the training loader's batch size; fewer where the data set
            ends.
        seed: chooses the batches and their augmentation, the same each time.
    """

    # After EMAHook (NORMAL), before CheckpointHook (VERY_LOW).
    priority = 'LOW'

    def __init__(self, num_batches: int = 100, seed: int = 0) -> None:
        if isinstance(num_batches, bool) or not isinstance(num_batches, int) or num_batches < 1:
            raise ValueError(f'num_batches must be a whole number from 1, got {num_batches!r}.')
        self.num_batches = num_batches
        self.seed = check_int(seed, 'seed')

    def after_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner._train_loop, EpochBasedTrainLoop) and self._due(runner, by_epoch=True):
            self.recalibrate(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if isinstance(runner._train_loop, IterBasedTrainLoop) and self._due(runner, by_epoch=False):
            self.recalibrate(runner)

    def recalibrate(self, runner: Runner) -> None:
        """Replaces the running statistics of the model that trains."""
        model: AnyModule = student_of(runner)
        if not any(_estimates(module) for module in model.modules()):
            return
        loader = _loader(runner.train_dataloader, self.num_batches, self.seed)
        with rng_kept(), _statistics_mode(model), torch.no_grad():
            seed_everything(self.seed, 0)
            without_mixup = getattr(model.data_preprocessor, 'without_mixup', nullcontext)
            with without_mixup(), runner.optim_wrapper.optim_context(model):
                for batch in loader:
                    data = model.data_preprocessor(batch, True)
                    model(data['inputs'], data.get('data_samples'), mode='tensor')

    def _due(self, runner: Runner, by_epoch: bool) -> bool:
        """Whether a validation or a checkpoint follows the current epoch or iteration."""
        loop = runner._train_loop
        done, last = (
            (runner.epoch + 1, loop.max_epochs) if by_epoch else (runner.iter + 1, loop.max_iters)
        )
        if done == last:
            return True
        validates = runner.val_loop is not None and done >= loop.val_begin
        if validates and done % loop.val_interval == 0:
            return True
        return any(_saves(hook, runner, by_epoch) for hook in runner.hooks)


def _saves(hook: Hook, runner: Runner, by_epoch: bool) -> bool:
    if not isinstance(hook, CheckpointHook) or hook.by_epoch != by_epoch:
        return False
    every = hook.every_n_epochs if by_epoch else hook.every_n_train_iters
    return every(runner, hook.interval, hook.save_begin)


def _estimates(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that is updating running statistics now."""
    return isinstance(module, _BatchNorm) and module.training and module.track_running_stats


def _loader(loader: DataLoader, num_batches: int, seed: int) -> DataLoader:
    """Loads this rank's share of a fixed random selection of the same data set.

    A loader of our own, because iterating over the training loader would move its sampler (an
    ``InfiniteSampler``) or end its persistent workers' epoch.
    """
    rank, world = get_dist_info()
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None) or 1
    count = len(loader.dataset)  # type: ignore[arg-type]  # one to be shuffled has a length
    order = np.random.RandomState(seed).permutation(count)
    size = min(size, max(count // world, 1))
    per_rank = min(num_batches, max(count // (size * world), 1)) * size
    return DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=order[rank::world][:per_rank].tolist(),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        pin_memory=loader.pin_memory,
    )


@contextmanager
def _statistics_mode(model: nn.Module) -> Iterator[None]:
    """All in eval mode but the BatchNorm layers, whose statistics are averaged from scratch.

    On leaving, the ranks' averages are averaged; layers that were not called keep what they had.
    """
    modes = {module: module.training for module in model.modules()}
    layers: list[AnyModule] = [module for module in model.modules() if _estimates(module)]
    momenta = [layer.momentum for layer in layers]
    kept = [{n: b.clone() for n, b in layer.named_buffers(recurse=False)} for layer in layers]
    called = [False] * len(layers)
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
        yield
        called = [bool(layer.num_batches_tracked) for layer in layers]
    finally:  # after a failure nothing is new
        for module, training in modes.items():
            module.training = training
        for layer, momentum, old, new in zip(layers, momenta, kept, called):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(old['num_batches_tracked'])
            for name in ('running_mean', 'running_var'):
                if new:
                    all_reduce(getattr(layer, name), op='mean')
                else:
                    getattr(layer, name).copy_(old[name])
