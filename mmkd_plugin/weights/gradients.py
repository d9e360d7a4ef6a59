"""Gradients of single losses in the middle of a training step, which leave no trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

# The gradient of a half precision step is multiplied by this first; what overflows is tried with
# less. 2**16 is where torch's GradScaler begins.
_SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)


class ParameterNorms(NamedTuple):
    """The gradient of one loss, parameter by parameter, averaged over the ranks.

    Attributes:
        squares: squared L2 norms, (P,) float64 on the CPU; 0 where it does not arrive.
        reached: whether the loss depends on the parameter on any rank, (P,) bool on the CPU.
    """

    squares: Tensor
    reached: Tensor

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.squares).all())

    def norm(self, among: Tensor) -> float:
        """L2 norm over some of the parameters, (P,) bool."""
        return float(self.squares[among].sum().sqrt())


def trainable(student: nn.Module, without: str) -> list[nn.Parameter]:
    """The student's own parameters that are trained: those of ``student.<without>`` are not."""
    named = student.named_parameters()
    return [p for name, p in named if p.requires_grad and not name.startswith(f'{without}.')]


def parameter_norms(loss: Tensor, student: nn.Module, without: str) -> ParameterNorms:
    """Norms of the gradient of ``loss`` in float32, of the mean over all ranks.

    The graph stays for the backward of the step. Gradients that were accumulated before, buffers
    and random states are as they were. Every rank of a distributed run has to call it.

    Args:
        loss: a scalar of this step.
        student: the model whose trainable parameters are looked at.
        without: name of a submodule that is not the student's own.
    """
    parameters = trainable(student, without)
    for scale in _scales(loss.device):
        found = gradients(loss, parameters, student, scale)
        squares = _squares(_averaged(found, parameters), scale)
        norms = ParameterNorms(squares, _reached(found, loss.device))
        if norms.is_finite:
            break
    return norms


def _scales(device: torch.device) -> Sequence[float]:
    one = torch.ones(1, 1, device=device)
    return _SCALES if torch.mm(one, one).dtype == torch.float16 else (1.0,)  # under this autocast


def gradients(
    loss: Tensor, parameters: Sequence[nn.Parameter], student: nn.Module, scale: float = 1.0
) -> list[Tensor | None]:
    """The gradient of ``loss`` on this rank, times ``scale``; None where it does not depend on a
    parameter. The graph stays, and nothing is accumulated."""
    if not loss.requires_grad:
        return [None] * len(parameters)
    scaled = loss * scale
    with torch.autocast(loss.device.type, enabled=False):
        if not _is_checkpointed(loss):
            return list(
                torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
            )
        with _untouched(student):
            scaled.backward(retain_graph=True)
            return [p.grad for p in parameters]


def _is_checkpointed(loss: Tensor) -> bool:
    """Whether a part of the graph is run once more in the backward (``with_cp=True`` of mmdet's
    backbones, MMEngine's ``activation_checkpointing``). Reentrant parts are functions to autograd
    whose parameters it does not know: they only accumulate gradients."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == 'CheckpointFunctionBackward':
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


@contextlib.contextmanager
def _untouched(student: nn.Module) -> Iterator[None]:
    """Empty gradients inside; afterwards gradients and buffers are what they were."""
    gradients = [(p, p.grad) for p in student.parameters()]
    buffers = [(b, b.clone()) for b in student.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):  # a write would spoil the graph of the others
                    buffer.copy_(value)


def _averaged(
    gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]
) -> list[Tensor | None]:
    """Mean over the ranks in float32, as DDP would make it."""
    if get_world_size() == 1:
        return [None if g is None else g.float() for g in gradients]
    flat = torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).detach().float().flatten()
            for p, g in zip(parameters, gradients)
        ]
    )
    all_reduce(flat, 'mean')
    parts = flat.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters)]


def _squares(gradients: Sequence[Tensor | None], scale: float) -> Tensor:
    zero = next((g.new_zeros(()) for g in gradients if g is not None), torch.zeros(()))
    norms = [zero if g is None else torch.linalg.vector_norm(g) for g in gradients]
    return (torch.stack(norms).cpu().double() / scale).square() if norms else torch.zeros(0)


def _reached(gradients: Sequence[Tensor | None], device: torch.device) -> Tensor:
    reached = torch.tensor([g is not None for g in gradients], dtype=torch.float32, device=device)
    if get_world_size() > 1:
        all_reduce(reached, 'max')
    return reached.cpu() > 0
