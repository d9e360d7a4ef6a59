"""Resuming in the middle of an epoch: only the batches that are still to come are loaded.

MMEngine counts iterations and epochs in a checkpoint, but an epoch-based loop begins the epoch of a
checkpoint saved within it from its first batch again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner


def resume_within_epoch(runner: Runner) -> None:
    """Lets a resumed epoch-based loop go on with the batch after the last one it has seen.

    The sampler must give the same order for the same epoch (MMEngine's do).
    """
    loop = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop) or isinstance(loop.dataloader, _Rest):
        return
    length = len(loop.dataloader)
    done = loop.iter - loop.epoch * length
    if not loop.iter or not done:
        return
    if not 0 < done <= length:
        print_log(
            f'The checkpoint has seen {loop.iter} iterations in {loop.epoch} whole epochs, which '
            f'now have {length} each: batch size, data or number of ranks have changed. The epoch '
            'begins with its first batch.',
            'current',
            logging.WARNING,
        )
        return
    print_log(f'Epoch {loop.epoch + 1} goes on after {done} of its {length} batches.', 'current')
    loop.dataloader = _Rest(loop, done)


class _Rest:
    """Data loader of the loop for one epoch, without the batches that are done."""

    def __init__(self, loop: EpochBasedTrainLoop, done: int) -> None:
        self._loop = loop
        self._loader = loop.dataloader
        self._done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator:
        loop, run_iter = self._loop, self._loop.run_iter
        loop.dataloader = self._loader
        # The batches keep their indices, by which hooks know the end of the epoch.
        loop.run_iter = lambda index, batch: run_iter(index + self._done, batch)
        try:
            yield from _skipping(self._loader, self._done)
        finally:
            del loop.run_iter


def _skipping(loader: Any, count: int) -> Iterator:
    sampler = getattr(loader, 'batch_sampler', None)
    if sampler is None:  # it does not say which items make a batch: they must be loaded
        batches = iter(loader)
        for _ in range(count):
            next(batches, None)
        return batches
    state = torch.get_rng_state()
    try:
        # DataLoader refuses a new batch sampler by way of its attribute.
        vars(loader)['batch_sampler'] = _Later(sampler, count)
        batches = iter(loader)
    finally:
        vars(loader)['batch_sampler'] = sampler
        # The seed of the workers was drawn at the beginning of the epoch.
        torch.set_rng_state(state)
    return batches


class _Later:
    """Batch sampler that leaves out the first batches, the first time only: workers that live on
    keep it for later epochs."""

    def __init__(self, sampler: Any, count: int) -> None:
        self._sampler = sampler
        self._count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator:
        batches, count, self._count = iter(self._sampler), self._count, 0
        for _ in range(count):
            next(batches, None)
        return batches
