"""Finds NaN and Inf in what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor

# Numbers that were logged may be anything: the gradient norm of a skipped step is Inf.
_NOT_WATCHED = ('message_hub', 'meta')


def not_finite(checkpoint: dict, exempt: Collection[str] = (), nan_only: bool = False) -> list[str]:
    """Paths of the tensors in a checkpoint, as it is saved, that hold NaN or Inf.

    Weights, moving averages, optimizer and connectors are read. Entries of the names ``exempt`` may
    hold them, such as masks of -inf; ``nan_only`` lets Inf pass.
    """
    found = []
    for part, value in checkpoint.items():
        if part in _NOT_WATCHED:
            continue
        for path, tensor in _tensors(value, part):
            if _is_bad(tensor, nan_only) and not _is_among(path, exempt):
                found.append(path)
    return found


def on_this_rank() -> str:
    """Says in a message whose numbers are meant, where there are several ranks."""
    size = get_world_size()
    return f' on rank {get_rank()} of {size}' if size > 1 else ''


def _is_among(path: str, names: Collection[str]) -> bool:
    """The same entry is called ``ema_state_dict.module.<name>`` among the moving averages."""
    return any(path == name or path.endswith('.' + name) for name in names)


def _is_bad(tensor: Tensor, nan_only: bool) -> bool:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if nan_only:
        return bool(torch.isnan(tensor).any())
    return not bool(torch.isfinite(tensor).all())


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f'{path}.{key}')
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(item, f'{path}.{i}')
