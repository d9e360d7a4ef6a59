"""Random augmentation and dropout that continue exactly after a resume."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS
from ..rng import RandomSource

_BEFORE_STEP, _IN_STEP = 0, 1
_STREAM = 0x5EED  # apart from the noise of losses, which are seeded alike


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Makes random numbers a function of seed, rank and iteration.

    MMEngine does not save the states of the random generators, so a resumed run draws other crops
    and dropout masks than the run that was killed. This hook seeds Python, NumPy and PyTorch (CPU
    and the current accelerator) anew at every training iteration, and once more before the next
    batch is loaded. A resumed run then repeats, bit for bit, what an uninterrupted one does. It
    takes about 20 microseconds per iteration and changes nothing else; runs with and without it
    draw different random numbers.

    Exact are augmentation in the data preprocessor, dropout, drop-path and noise, in any loop; and
    augmentation in loader workers in epoch-based loops with ``persistent_workers=False`` and
    ``worker_init_fn=dict(type='epoch_worker_seed')``. Not covered are augmentation in workers that
    live on from epoch to epoch, or in iteration-based loops, and augmentation in the main process
    where MMEngine (0.10.7) loads and drops the batches that an iteration-based run skips.

    Args:
        seed: shared by all ranks; None is the Runner's (``randomness=dict(seed=...)``).
    """

    # After all other hooks, which may draw numbers themselves.
    priority = 'LOWEST'

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"seed must be a whole number or None (the Runner's), got {seed!r}.")
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        self._reseed(runner, runner.iter, _BEFORE_STEP)

    def before_train_epoch(self, runner: Runner) -> None:
        # From here the loader draws the seed of its workers.
        self._reseed(runner, runner.iter, _BEFORE_STEP)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._reseed(runner, runner.iter, _IN_STEP)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        self._reseed(runner, runner.iter + 1, _BEFORE_STEP)

    def after_val(self, runner: Runner) -> None:
        # A run resumed from the checkpoint of this iteration does not validate it once more.
        self._reseed(runner, runner.iter, _BEFORE_STEP)

    def _reseed(self, runner: Runner, iteration: int, phase: int) -> None:
        seed_everything(runner.seed if self.seed is None else self.seed, 2 * iteration + phase)


def seed_everything(seed: int, step: int) -> None:
    """Seeds Python, NumPy and PyTorch (CPU and accelerators) from seed, rank and step.

    No device is waited for.
    """
    source = RandomSource(seed ^ _STREAM, get_rank())
    source.reseed(step)
    seed = source.generator('cpu').initial_seed()
    random.seed(seed)
    np.random.seed(seed & (2**32 - 1))
    if get_device() not in ('cpu', 'cuda'):
        torch.manual_seed(seed)
        return
    # torch.manual_seed spends most of its time on CUDA where that is not in use.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
