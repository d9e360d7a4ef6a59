"""Random numbers of distillation's own, so that the student's training draws none for it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


class RandomSource:
    """Generators per device, seeded by seed, rank and iteration.

    Ranks draw different noise. Reseeding at every iteration makes noise a function of the
    iteration, so a resumed run needs no saved generator state.

    Args:
        seed: shared by all ranks.
        rank: this process's rank.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = int(seed)
        self.rank = int(rank)
        self._generators: dict[torch.device, torch.Generator] = {}
        self._iteration = 0

    def __deepcopy__(self, memo: dict) -> RandomSource:
        return self

    def generator(self, device: Any) -> torch.Generator:
        """The generator for ``device``."""
        device = torch.device(device)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._mixed())
        return self._generators[device]

    def hide(self) -> None:
        """Lets a compiled step call :meth:`generator` without looking into it.

        It would find the number of the iteration there, and be compiled anew for each.
        """
        hidden = torch.compiler.disable(self.generator)
        self.generator = hidden  # type: ignore[method-assign]  # of this object alone

    def reseed(self, iteration: int) -> None:
        """Restarts all generators for ``iteration``."""
        self._iteration = int(iteration)
        for generator in self._generators.values():
            generator.manual_seed(self._mixed())

    def _mixed(self) -> int:
        # Odd 64-bit constants spread neighbouring seeds, ranks and iterations (splitmix64).
        value = (
            self.seed * 0x9E3779B97F4A7C15
            + self.rank * 0xBF58476D1CE4E5B9
            + self._iteration * 0x94D049BB133111EB
        ) & (2**64 - 1)
        value ^= value >> 31
        return value & (2**63 - 1)


@contextlib.contextmanager
def rng_kept() -> Iterator[None]:
    """Leaves every random state (Python, NumPy, torch on all devices) as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
