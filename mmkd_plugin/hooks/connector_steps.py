"""Keeps the connectors of a run that nothing clips from steps beyond reason."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 0.05  # learning rate times gradient, in parts of a module's own size (docs/weights.md)
FLOOR = 0.01  # what the size is taken for at least, by element: parameters may begin as zeros


class ConnectorLimit:
    """Scales the gradients of connectors down in steps that would change them beyond reason.

    The weight of a term multiplies the gradient of its connectors, too. The target of a weight says
    nothing of that: with a large one, plain SGD can make a connector larger in every step until it
    overflows. So learning rate times gradient is limited to :data:`LARGEST` times the norm of the
    parameters, module by module, as adaptive gradient clipping does (Brock et al., High-Performance
    Large-Scale Image Recognition Without Normalization, 2021, equation 3, there for single units
    and without the learning rate). Momentum comes on top, as it does for the gradient. Other steps
    stay as they are, bit for bit. Nothing is read from the device.

    Args:
        named: name and parameter of each connector.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        modules: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in named:
            modules[name.rpartition('.')[0]].append(parameter)
        self._modules = list(modules.values())
        self.limited: Tensor | None = None  # in how many steps; on the device

    def before_step(
        self, groups: Iterable[Mapping[str, Any]], scale: Tensor | None, counts: Tensor | None
    ) -> None:
        """Scales the gradients of connectors down.

        Args:
            groups: of the optimizer; connectors of others are passed over.
            scale: by which gradients are still multiplied; None for 1.
            counts: whether the step is taken; None for always.
        """
        rates = {id(p): group['lr'] for group in groups if 'lr' in group for p in group['params']}
        learning = [[p for p in m if p.grad is not None and id(p) in rates] for m in self._modules]
        modules = [params for params in learning if params]
        if not modules:
            return
        # All modules at once: on a GPU these small kernels cost the host more than the device.
        floors = [
            params[0].new_full((), FLOOR * math.sqrt(sum(p.numel() for p in params)))
            for params in modules
        ]
        sizes = _norms([[_norm(p.detach()) for p in params] for params in modules])
        steps = _norms([[rates[id(p)] * _norm(p.grad) for p in params] for params in modules])
        limits = LARGEST * torch.maximum(sizes, torch.stack(floors))
        steps = steps if scale is None else steps / scale
        factors = torch.where(steps > limits, limits / steps, 1.0)
        for params, factor in zip(modules, factors.unbind()):
            for parameter in params:
                parameter.grad.mul_(factor.to(parameter.grad.dtype))  # type: ignore[union-attr]
        above = (steps > limits).any()
        above = (above if counts is None else above & counts).long()
        self.limited = above if self.limited is None else self.limited + above


def _norm(tensor: Any) -> Tensor:
    """L2 norm in float32."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float32)


def _norms(modules: list[list[Tensor]]) -> Tensor:
    """L2 norm of each module's tensors from the norms of its tensors, (modules,)."""
    width = max(map(len, modules))
    nothing = torch.zeros_like(modules[0][0])
    rows = [[*norms, *[nothing] * (width - len(norms))] for norms in modules]
    return torch.stack([x for row in rows for x in row]).view(len(rows), width).norm(dim=1)
