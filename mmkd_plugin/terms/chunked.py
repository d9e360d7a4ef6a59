"""The mean of a separable loss over whole maps of logits, one part after the other.

The plain way makes several tensors as large as the logits (for RetinaNet 61 MB each, per image).
Here the forward keeps nothing but references to the logits, and the backward computes every part
again and writes its gradient into one buffer that lies in memory as the map does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..functional.checks import widen
from ..losses.row_base import RowLoss, zero_uncounted
from ..views.scores import PART

# A part has ``PART`` logits at least. Larger ones launch fewer kernels, but the temporary tensors
# of a part are as large as it is; hence at most so many parts, whatever the size of the batch. On
# an accelerator the launches are what takes the time: 64 parts of KD took 32 ms on an H100, 2459
# operations, the plain formula 3 ms. 8 parts are 522 operations and 7 MB more for each image.
PARTS, PARTS_OF_ACCELERATORS = 64, 8


def chunked_mean(
    loss: RowLoss,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    labels: Sequence[Tensor] | None = None,
    columns: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The (weighted) mean of ``loss.rows`` over all rows of the maps, a scalar; fills its report.

    Args:
        loss: separable.
        students: maps of logits (N, P, A, C), such as pyramid levels.
        teachers: maps of the same (N, P, A).
        weights: for each map (N, P, A), at least 0; rows of weight 0 have no influence, whatever
            they hold. None is 1 everywhere.
        labels: for each map (N, P, A), if the loss needs them.
        columns: which columns of student and teacher are compared; None for all.
    """
    total = None
    if weights is not None:
        weights = [widen(w) for w in weights]
        total = cast(Tensor, sum(w.sum() for w in weights))
        # NaN passes through, so that it is noticed
        share = torch.where(total == 0, torch.ones_like(total), total)
        weights = [w / share for w in weights]
    count = max(1, sum(x.shape[:3].numel() for x in students))
    plan = _Plan(loss, weights, labels, columns, count)
    with torch.autocast(students[0].device.type, enabled=False):
        return _ChunkedMean.apply(plan, len(students), *students, *teachers)


@dataclass
class _Plan:
    """What is computed of each part.

    Attributes:
        loss: the loss.
        weights: for each map (N, P, A), of sum 1 (or 0) over all maps.
        labels: for each map (N, P, A).
        columns: those that are compared.
        count: number of rows of all maps.
    """

    loss: RowLoss
    weights: Sequence[Tensor] | None
    labels: Sequence[Tensor] | None
    columns: tuple[Tensor, Tensor] | None
    count: int

    def parts(self, maps: Sequence[Tensor]) -> Iterator[_Part]:
        """All positions of all maps, part by part."""
        count = PARTS if maps[0].device.type == 'cpu' else PARTS_OF_ACCELERATORS
        size = max(PART, sum(x.numel() for x in maps) // count)
        for level, x in enumerate(maps):
            step = max(1, size // max(1, x.shape[0] * x.shape[2] * x.shape[3]))
            for begin in range(0, x.shape[1], step):
                yield _Part(level, begin, min(step, x.shape[1] - begin))

    def inputs(
        self, part: _Part, s: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, dict, Tensor | None]:
        """Rows of student and teacher (K, C), what else the loss needs, and the weights (K,)."""
        s, t = part.of(s), part.of(t)
        if self.columns is not None:
            s, t = (x.index_select(3, c) for x, c in zip((s, t), self.columns))
        s, t = (x.reshape(-1, x.shape[3]) for x in (s, t))
        extras = {}
        if self.labels is not None:
            extras['labels'] = part.of(self.labels[part.level]).reshape(-1)
        if self.weights is None:
            return s, t, extras, None
        w = part.of(self.weights[part.level]).reshape(-1)
        counted = w != 0
        s, t = zero_uncounted(s, counted), zero_uncounted(t, counted)
        return s, t, {k: zero_uncounted(x, counted) for k, x in extras.items()}, w

    def value(self, part: _Part, s: Tensor, t: Tensor, notes: dict) -> Tensor:
        """The part's share in the mean; adds to the sums of what the loss noted."""
        if self.columns is None and self.loss.closed_form:
            order, dim = _frame(s)
            framed = [part.of(x).permute(order) for x in (s, t)]
            values = self.loss.values_along(framed[0], framed[1], dim)
            if self.weights is None:
                return values.sum() / self.count
            framed_weights = self._framed_weights(part, order, dim)
            return torch.where(framed_weights != 0, values * framed_weights, 0).sum()
        s, t, extras, w = self.inputs(part, s, t)
        values = self.loss.rows(s, t, **extras)
        for key, sums in self.loss.take_notes(w).items():
            notes[key] = [a + b for a, b in zip(notes.get(key, (0, 0)), sums)]
        return values.sum() / self.count if w is None else (values * w).sum()

    def write_gradient(
        self, part: _Part, s: Tensor, t: Tensor, upstream: Tensor, whole: Tensor
    ) -> None:
        """The part's gradient, times the ``upstream`` one, into the gradient of its map."""
        if self.columns is None and self.loss.closed_form:
            self._write_closed(part, s, t, upstream, whole)
            return
        s_rows, t_rows, extras, w = self.inputs(part, s, t)
        with torch.enable_grad():
            s_rows = s_rows.detach().requires_grad_()
            values = self.loss.rows(s_rows, t_rows, **extras)
            value = values.sum() / self.count if w is None else (values * w).sum()
            (grad,) = torch.autograd.grad(value, s_rows, upstream.to(value.dtype))
        self.loss.take_notes(w)  # noted in the forward already
        if w is not None:
            grad = zero_uncounted(grad, w != 0)
        target = part.of(whole)
        if self.columns is None:
            target.copy_(grad.view(target.shape))
        else:
            shape = (*target.shape[:3], grad.shape[1])
            target.index_copy_(3, self.columns[0], grad.view(shape).to(target.dtype))

    def _write_closed(
        self, part: _Part, s: Tensor, t: Tensor, upstream: Tensor, whole: Tensor
    ) -> None:
        order, dim = _frame(s)
        s, t, target = (part.of(x).permute(order) for x in (s, t, whole))
        # In the buffer itself where its precision allows: one temporary tensor less.
        wide = target.dtype in (torch.float32, torch.float64)
        slope = target if wide else torch.empty_like(target, dtype=torch.float32)
        self.loss.slope_along(s, t, dim, out=slope)
        if self.weights is None:
            slope.mul_(upstream / self.count)
        else:
            w = self._framed_weights(part, order, dim)
            slope.mul_(w * upstream).masked_fill_(w == 0, 0)
        if not wide:
            target.copy_(slope)

    def _framed_weights(self, part: _Part, order: list[int], dim: int) -> Tensor:
        assert self.weights is not None
        return part.of(self.weights[part.level]).unsqueeze(3).permute(order)


@dataclass(frozen=True)
class _Part:
    """Some positions of one map."""

    level: int
    begin: int
    length: int

    def of(self, x: Tensor) -> Tensor:
        """This part of ``x`` (N, P, ...), a view."""
        return x.narrow(1, self.begin, self.length)


def _frame(x: Tensor) -> tuple[list[int], int]:
    """Dimensions of a map in the order of memory, and where the columns are then."""
    stride = x.stride()
    order = sorted(range(4), key=lambda d: -stride[d])
    return order, order.index(3)


class _ChunkedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan: _Plan, levels: int, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(*maps)
        ctx.plan, ctx.levels = plan, levels
        students, teachers = maps[:levels], maps[levels:]
        notes: dict[str, list[Tensor]] = {}
        value = torch.zeros((), dtype=widen(students[0][:0]).dtype, device=students[0].device)
        for part in plan.parts(students):
            value += plan.value(part, students[part.level], teachers[part.level], notes)
        for key, (total, amount) in notes.items():
            plan.loss.report[key] = total / torch.where(amount > 0, amount, 1)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan, levels = ctx.plan, ctx.levels
        students, teachers = ctx.saved_tensors[:levels], ctx.saved_tensors[levels:]
        # In the layout of the maps, or the views below would copy them.
        wanted = ctx.needs_input_grad[2 : 2 + levels]
        grads = [torch.zeros_like(x) if want else None for want, x in zip(wanted, students)]
        with torch.autocast(upstream.device.type, enabled=False):
            for part in plan.parts(students):
                if wanted[part.level]:
                    pair = students[part.level], teachers[part.level]
                    plan.write_gradient(part, *pair, upstream, grads[part.level])
        return None, None, *grads, *[None] * levels
