"""Finds operations whose result the host must wait for."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select', 'equal', 'unique')
WAITING = tuple(f'aten::{name}' for name in NAMES)


class Waits(TorchDispatchMode):
    """Lists the operations, of all that run inside, that make the host wait for the device.

    Attributes:
        seen: their names.
        count: how many operations ran at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if func._schema.name in WAITING:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))
