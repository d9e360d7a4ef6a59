"""A term between tensors at module paths, level by level."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from ..checks import shown
from ..errors import TapError
from ..functional.checks import widen
from ..losses.base import measure
from ..taps import Recorder, TapPoint
from ..views import TapView
from ..views.batch import repeated
from .base import PlanRow, Term, Watched
from .config import TermConfig
from .pairing.both import check_count, refuse_gradient_free
from .pairing.maps import check_levels, check_maps


class TapTerm(Term):
    """Distils every level of one tap with a loss module (and connectors) of its own per level.

    Args:
        config: the term.
        student: reads the student's levels.
        teacher: reads the teacher's.
        where: names the term in messages.
        copies: images of the student's maps for one of the teacher's.
        kind: ``'feature'``, or ``'image_feature'`` of an image classifier.
    """

    student: TapView
    teacher: TapView

    def __init__(
        self,
        config: TermConfig,
        student: TapView,
        teacher: TapView,
        where: str,
        copies: int = 1,
        kind: str = 'feature',
    ) -> None:
        super().__init__(config, student, teacher, where)
        self.copies = copies
        self._kind = kind
        if config.select is not None:
            raise ValueError(
                f'select={shown(config.select)} chooses among the rows of a view '
                "such as 'cls_logits'; the tensors of a module path are compared whole."
            )
        if config.resize not in (None, 'bilinear'):
            raise ValueError(f"resize is None or 'bilinear', not {shown(config.resize)}.")

    @property
    def kind(self) -> str:
        return self._kind

    @property
    def probed(self) -> list[TapPoint]:
        return self.student.points

    def build_losses(
        self, student_recorder: Recorder, teacher_recorder: Recorder, rng: Any
    ) -> list[PlanRow]:
        own, theirs = self.student.read(student_recorder), self.teacher.read(teacher_recorder)
        check_levels(own, theirs)
        plan = []
        for s, t in zip(own, theirs):
            loss = self.add_loss(rng)
            try:
                loss.connect(s.tensor.shape, t.tensor.shape)
            except ValueError as error:
                raise TapError(
                    f'student {s.label!r} is {tuple(s.tensor.shape)}, teacher '
                    f'{t.label!r} is {tuple(t.tensor.shape)}: {error}'
                ) from error
            check_maps(s, t, self.config.resize, self.copies)
            wide = torch.promote_types(s.tensor.dtype, torch.float32)
            loss.to(device=s.tensor.device, dtype=wide)
            shapes = tuple(s.tensor.shape), tuple(t.tensor.shape)
            count = sum(p.numel() for p in loss.parameters())
            plan.append(PlanRow(self.name, s.label, t.label, *shapes, count, self.weight_text))
        return plan

    def compute(
        self, student_recorder: Recorder, teacher_recorder: Recorder, data_samples: Any
    ) -> tuple[dict[str, Tensor], list[Watched]]:
        own, theirs = self.student.read(student_recorder), self.teacher.read(teacher_recorder)
        check_count('levels', len(self.losses), own, theirs)
        values: list[Tensor] = []
        entries: dict[str, Tensor] = {}
        watched: list[Watched] = []
        for loss, s, t in zip(self.losses, own, theirs):
            refuse_gradient_free(s.tensor, s.label)
            check_maps(s, t, self.config.resize, self.copies)
            if self.observer is not None:
                self.observer.maps(self, s, t)
            result = measure(loss, s.tensor, self._resized(t.tensor, s.tensor))
            values.append(result.value)
            self.add_extras(result, entries, 1 / len(self.losses))
            watched += [
                Watched(f'{role} tap {c.label!r} of term {self.name!r}', c.tensor)
                for role, c in (('student', s), ('teacher', t))
            ]
        return {f'loss_{self.name}': sum(values) * self.factor, **entries}, watched

    def _resized(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The teacher's map as often as the student holds an image, and at the student's size."""
        teacher = repeated(teacher, student, self.copies)
        if teacher.shape[2:] == student.shape[2:]:
            return teacher
        return nnf.interpolate(
            widen(teacher), size=student.shape[2:], mode='bilinear', align_corners=False
        )
