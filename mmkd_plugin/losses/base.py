"""The contract of every distillation loss; what losses on logits and on features add is beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..checks import arguments


class LossResult(NamedTuple):
    """All that a loss says of a step.

    Attributes:
        value: the scalar loss, with a graph.
        auxiliary: see :attr:`DistillLoss.auxiliary`.
        report: see :attr:`DistillLoss.report`.
    """

    value: Tensor
    auxiliary: dict[str, Tensor]
    report: dict[str, Tensor]


class DistillLoss(nn.Module):
    """A scalar distance of a student tensor to a teacher tensor.

    A subclass implements :meth:`compute`, and :meth:`connect` if it has parameters of its own
    (connectors). The result is a mean over samples, in float32 or wider; only the student gets a
    gradient.

    Attributes:
        needs: What :meth:`compute` gets beside the two tensors, by name: ``'labels'``,
            ``'features'``. A view such as ``cls_logits`` supplies them.
        batch_coupled: True if the loss of a sample depends on the other samples of its batch, so
            that splitting a batch (gradient accumulation, more GPUs) changes the result.
        gated: True if all samples of a batch may lie behind a gate, so that a loss of exactly 0 is
            no fault.
        rng: Source of random numbers, set by the distiller: ``rng.generator(device)`` returns a
            ``torch.Generator``. None means PyTorch's global state.
        report: Diagnostics of the last forward: detached scalars, logged as ``<term>_<key>``.
        auxiliary: Losses of the last forward that train connectors only; they join the total as
            ``loss_<term>_<key>``, without the term's weight.
        report_keys: Every key that :attr:`report` may get. What is named here and in
            :attr:`auxiliary_keys` is compared with the student's own log keys in every step, also
            in those in which the term does not act yet.
        auxiliary_keys: Every key that :attr:`auxiliary` may get.
    """

    needs: tuple[str, ...] = ()
    report_keys: tuple[str, ...] = ()
    auxiliary_keys: tuple[str, ...] = ()
    batch_coupled: bool = False
    gated: bool = False
    rng = None

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, Tensor] = {}
        self.auxiliary: dict[str, Tensor] = {}

    def connect(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        features_shape: Sequence[int] | None = None,
    ) -> None:
        """Creates the connectors for tensors of these shapes; nothing to do by default.

        Call it before the optimizer is built: ``forward`` calls it when nobody did, which is too
        late for an optimizer that exists already.
        """

    def set_progress(self, iteration: int, epoch: int) -> None:
        """Tells where training is (both from 0), for losses that change on the way."""

    def forward(self, student: Tensor, teacher: Tensor, **extras: Tensor) -> Tensor:
        """Returns the scalar loss; ``extras`` are what :attr:`needs` names."""
        # The maths of a loss never runs in the half precision of a surrounding autocast.
        with torch.autocast(student.device.type, enabled=False):
            return self.compute(student, teacher.detach(), **extras)

    def compute(self, student: Tensor, teacher: Tensor, **extras: Tensor) -> Tensor:
        """The loss of two tensors of the same shape; autocast is off, the teacher detached."""
        raise NotImplementedError(
            f'{type(self).__name__} must implement compute(student, teacher).'
        )

    def extra_repr(self) -> str:
        """The constructor's arguments, as far as they are plain values that the loss keeps."""
        kept = ((name, vars(self).get(name, self)) for name in arguments(type(self)))
        plain = (bool, int, float, str, type(None))
        return ', '.join(f'{name}={value!r}' for name, value in kept if isinstance(value, plain))

    def __getstate__(self) -> dict:
        # The last auxiliary loss hangs on a graph, which can be neither copied nor pickled.
        return dict(self.__dict__, auxiliary={})

    def random_generator(self, device: torch.device) -> torch.Generator | None:
        """The generator to draw from on ``device``; None is the global state."""
        return None if self.rng is None else self.rng.generator(device)


def measure(loss: DistillLoss, *args: Tensor, **extras: Tensor) -> LossResult:
    """Calls a loss, and takes what it has to say beside its value."""
    return taken(loss, loss(*args, **extras))


def taken(loss: DistillLoss, value: Tensor) -> LossResult:
    """The value of a loss with what it left on itself, which it would keep with its graph."""
    result = LossResult(value, loss.auxiliary, loss.report)
    loss.auxiliary, loss.report = {}, {}
    return result
