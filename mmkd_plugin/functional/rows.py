"""Rows out of maps of logits, without copies of the maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .compiling import is_compiling


def gather_rows(maps: Sequence[Tensor], index: Tensor) -> Tensor:
    """Chosen rows of several maps, such as pyramid levels.

    The gradient of each map has the map's own layout in memory.

    Args:
        maps: (N, P, A, C) each, with P and A of their own.
        index: for each image which rows of all maps behind one another, positions before
            predictions, (N, K) with values in 0 to sum(P A) - 1; distinct within an image.

    Returns:
        (N, K, C), of the maps' dtype.
    """
    if is_compiling():
        return _gather(maps, index)
    return _GatherRows.apply(index, *maps)


def places(maps: Sequence[Tensor], index: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each map which of the rows are in it, (N, K) bool, their positions and predictions.

    Rows of other maps get a place somewhere in this one.
    """
    found, first = [], 0
    for x in maps:
        anchors = x.shape[2]
        size = x.shape[1] * anchors
        local = index - first
        inside = (local >= 0) & (local < size)
        local = local.clamp(0, max(size - 1, 0))
        found.append((inside, torch.div(local, anchors, rounding_mode='floor'), local % anchors))
        first += size
    return found


def _gather(maps: Sequence[Tensor], index: Tensor) -> Tensor:
    images = torch.arange(index.shape[0], device=index.device)[:, None]
    rows = maps[0].new_zeros(*index.shape, maps[0].shape[-1])
    for x, (inside, position, prior) in zip(maps, places(maps, index)):
        if x.shape[1]:  # nothing can be taken from an empty level
            rows = torch.where(inside[..., None], x[images, position, prior], rows)
    return rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index: Tensor, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(index, *maps)
        return _gather(maps, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, *maps = ctx.saved_tensors
        images = torch.arange(index.shape[0], device=index.device)[:, None]
        grads: list[Tensor | None] = []
        for needed, x, (inside, position, prior) in zip(
            ctx.needs_input_grad[1:], maps, places(maps, index)
        ):
            if not needed:
                grads.append(None)
                continue
            whole = torch.zeros_like(x)  # in the layout of x, or the views below would copy it
            if x.shape[1]:
                own = torch.where(inside[..., None], grad, torch.zeros_like(grad)).to(x.dtype)
                # Adding up, for rows of other maps share places here: they add zeros.
                whole.index_put_((images, position, prior), own, accumulate=True)
            grads.append(whole)
        return None, *grads
