"""overflow: numbers of the layers that float16 has no room for.

The layers run in float32 and their outputs are looked at, so a CPU tells what a GPU would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..distiller import ATTRIBUTE
from .findings import Report

LARGEST = {'float16': 65504.0, 'bfloat16': 3.38e38, 'float32': 3.40e38}
_KINDS = (_ConvNd, nn.Linear, _BatchNorm)  # what autocast runs in half precision


def amp_dtype(optim_wrapper: Any) -> str:
    """The type of numbers in which the config trains; float16 is what a GPU does by default."""
    kind = (optim_wrapper or {}).get('type', '')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    if not name.endswith('AmpOptimWrapper'):
        return 'float32'
    dtype = optim_wrapper.get('dtype')
    return str(dtype).removeprefix('torch.') if dtype is not None else 'float16'


@contextmanager
def watched(models: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The largest output of each layer while models run, by ``role: path``.

    Args:
        models: by role.
    """
    found: dict[str, Tensor] = {}

    def look(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            largest = output.detach().abs().amax().nan_to_num(nan=torch.inf, posinf=torch.inf)
            found[name] = torch.maximum(found[name], largest) if name in found else largest

    handles = [
        module.register_forward_hook(
            lambda _module, _args, output, name=f'{role}: {path}': look(name, output)
        )
        for role, model in models.items()
        for path, module in model.named_modules()
        if isinstance(module, _KINDS) and not path.startswith(f'{ATTRIBUTE}.')
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check_ranges(found: dict[str, Tensor], dtype: str, report: Report) -> None:
    """Adds the finding for layers whose outputs have no place in the type of the config."""
    limit = LARGEST.get(dtype, LARGEST['float32'])
    values = {name: float(value) for name, value in found.items()}
    over = {name: value for name, value in values.items() if not value <= limit}
    if not over:
        return
    worst = max(over, key=lambda name: over[name])
    evidence = dict(largest=over[worst], limit=limit, layers=len(over), dtype=dtype)
    finite = all(value < float('inf') for value in over.values())
    advice = "optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16')"
    if not finite:
        advice = f'{worst} is not finite even in float32: another checkpoint'
    report.add('overflow', worst, evidence, advice)
