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
        """Scales gradients down.

        Args:
            groups: of the optimizer; connectors of others are passed over.
            scale: by which gradients are still multiplied; None for 1.
            counts: whether the step is taken; None for always.
        """
        rates = {id(p): group['lr'] for group in groups if 'lr' in group for p in group['params']}
        above: Tensor | None = None
        for module in self._modules:
            params = [p for p in module if p.grad is not None and id(p) in rates]
            if not params:
                continue
            count = sum(p.numel() for p in params)
            limit = LARGEST * _norm(p.detach() for p in params).clamp(min=FLOOR * math.sqrt(count))
            step = _norm(rates[id(p)] * _norm([p.grad]) for p in params)
            step = step if scale is None else step / scale
            factor = torch.where(step > limit, limit / step, 1.0)
            for parameter in params:
                assert parameter.grad is not None
                parameter.grad.mul_(factor.to(parameter.grad.dtype))
            above = step > limit if above is None else above | (step > limit)
        if above is not None:
            above = (above if counts is None else above & counts).long()
            self.limited = above if self.limited is None else self.limited + above


def _norm(tensors: Iterable[Any]) -> Tensor:
    """L2 norm of all elements, in float32."""
    return torch.stack([torch.linalg.vector_norm(x, dtype=torch.float32) for x in tensors]).norm()
