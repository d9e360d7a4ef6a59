"""Finds operations whose result the host must wait for."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ('aten::_local_scalar_dense', 'aten::nonzero', 'aten::equal', 'aten::is_nonzero')


class Waits(TorchDispatchMode):
    """Lists the operations, of all that run inside, that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITING:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))
