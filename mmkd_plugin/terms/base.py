"""One line of a distillation plan: a loss between a place in the student and one in the teacher.

:class:`TapTerm` compares tensors at module paths, level by level; :class:`LogitTerm` (in
``logit_term.py``) compares the class logits that views read. :class:`Term` is what they share.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..errors import placed
from ..losses.base import DistillLoss, LossResult
from ..taps import Capture, Recorder, TapPoint
from ..views import Predictions, View
from .config import TermConfig
from .modules import Modules


class PlanRow(NamedTuple):
    """One level or head of one term, as known before training."""

    term: str
    student: str
    teacher: str
    student_shape: tuple
    teacher_shape: tuple
    connector_parameters: int
    weight: str
    rows: str = ''  # of a view: which it is, and which of its rows count


class Watched(NamedTuple):
    """A tensor that must be finite, and what to call it in a message."""

    name: str
    tensor: Tensor


class Observer(Protocol):
    """Somebody who looks at what terms compare in a step, and changes nothing."""

    def maps(self, term: Term, student: Capture, teacher: Capture) -> None:
        """Gets the two maps of a level."""

    def rows(
        self,
        term: Term,
        student: Predictions,
        teacher: Predictions,
        columns: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Gets the rows of a head, and the columns of both that mean the same; None for all."""


class Term(nn.Module):
    """A loss module (with connectors) for each level or head, a weight and a schedule.

    Args:
        config: the term.
        student: reads the student.
        teacher: reads the teacher.
        where: names the term in messages, such as ``terms[0] ('kd')``.

    Attributes:
        observer: who looks at the next steps; None costs nothing.
    """

    factor: Tensor
    observer: Observer | None = None

    def __init__(self, config: TermConfig, student: View, teacher: View, where: str) -> None:
        super().__init__()
        self.config = config
        self.name = config.name
        self.where = where
        number = config.weight.number
        self.weight = 1.0 if number is None else number
        self.schedule = config.schedule
        self.student = student
        self.teacher = teacher
        self.losses: Modules[DistillLoss] = Modules()
        self.ramp = 1.0  # what the schedule makes of the weight in this step
        self.current_weight = self.weight
        self.active = self.weight > 0
        self.last_turn: int | None = None  # iteration in which it acted last; None once it ended
        # A tensor, so that a ramp does not recompile a compiled step; never saved.
        self.register_buffer('factor', torch.tensor(self.weight), persistent=False)

    @property
    def kind(self) -> str:
        """What it compares, a key of :data:`mmkd_plugin.weights.TARGETS`."""
        return 'feature'

    @property
    def gated(self) -> bool:
        """Whether a value of exactly 0 says that every gate of its losses is closed."""
        return all(loss.gated for loss in self.losses)

    @property
    def target(self) -> float | None:
        """The gradient ratio to which its weight is calibrated; None for a given weight."""
        weight = self.config.weight
        return weight.target(self.kind) if weight.is_auto else None

    @property
    def weight_text(self) -> str:
        """The weight as the plan shows it before training."""
        if self.target is None:
            return f'{self.weight:g}'
        return f"auto ({self.target:g} x the task's gradient)"

    @property
    def probed(self) -> list[TapPoint]:
        """Points of the student whose shapes a probe image must tell before connecting."""
        return []

    def connect(
        self, student_recorder: Recorder, teacher_recorder: Recorder, rng: Any
    ) -> list[PlanRow]:
        """Builds the loss modules; the recorders hold what a probe image gave, if it was asked for.

        Raises:
            TapError: places that cannot be compared.
        """
        with placed(self.where):
            return self.build_losses(student_recorder, teacher_recorder, rng)

    def build_losses(
        self, student_recorder: Recorder, teacher_recorder: Recorder, rng: Any
    ) -> list[PlanRow]:
        """What a kind of term does to connect."""
        raise NotImplementedError

    def compute(
        self, student_recorder: Recorder, teacher_recorder: Recorder, data_samples: Any
    ) -> tuple[dict[str, Tensor], list[Watched]]:
        """The term's entries in the loss dict for this step, and what must be finite.

        Returns:
            ``loss_<name>`` times the current weight; and where the loss has them,
            ``loss_<name>_<key>`` (auxiliary losses, unweighted) and ``<name>_<key>`` (diagnostics).
        """
        raise NotImplementedError

    def update(self, iteration: int, epoch: int) -> None:
        """Sets activity and weight for a step."""
        self.ramp = self.schedule.factor(iteration, epoch)
        self.apply_weight()
        self.active = self.current_weight > 0
        if self.active:
            self.last_turn = iteration
        elif not self.schedule.lasts(iteration, epoch):
            self.last_turn = None
        for loss in self.losses:
            loss.set_progress(iteration, epoch)

    def apply_weight(self) -> None:
        """Puts ``weight`` into force. Not within a step: its graph holds the factor."""
        if self.weight * self.ramp != self.current_weight:  # or a kernel would run for nothing
            self.current_weight = self.weight * self.ramp
            self.factor.fill_(self.current_weight)

    def keys(self) -> list[str]:
        """All keys under which its entries may appear, as far as its losses name theirs."""
        keys = [f'loss_{self.name}']
        for loss in self.losses:
            keys += [f'loss_{self.name}_{key}' for key in loss.auxiliary_keys]
            keys += [f'{self.name}_{key}' for key in loss.report_keys]
        return list(dict.fromkeys(keys))

    def idle(self) -> Tensor:
        """Zero that touches every connector, so that DDP finds no unused parameter."""
        return sum((p.sum() for p in self.parameters()), self.factor.new_zeros(())) * 0.0

    def add_loss(self, rng: Any) -> DistillLoss:
        """A new loss module for one more level or head, not connected yet."""
        loss = self.config.new_loss()
        loss.rng = rng
        self.losses.append(loss)
        return loss

    def add_extras(
        self,
        result: LossResult,
        entries: dict[str, Tensor],
        fraction: float,
        factor: Tensor | float = 1.0,
    ) -> None:
        """Adds what a loss has to say beside its value to the entries of the step.

        Auxiliary losses are added up, times ``factor``; diagnostics averaged, ``fraction`` being
        one loss's part.
        """
        for key, value in result.auxiliary.items():
            key = f'loss_{self.name}_{key}'
            entries[key] = entries.get(key, 0.0) + value * factor
        for key, value in result.report.items():
            key = f'{self.name}_{key}'
            entries[key] = entries.get(key, 0.0) + value * fraction
