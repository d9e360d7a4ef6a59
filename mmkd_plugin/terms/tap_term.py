"""A term between tensors at module paths, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from ..checks import shown
from ..errors import TapError
from ..functional.checks import widen
from ..taps import Capture, Recorder, TapPoint
from ..views import TapView
from ..views.batch import repeated
from .base import PlanRow, Term, Watched
from .pairing import refuse_gradient_free


class TapTerm(Term):
    """Distils every level of one tap with a loss module (and connectors) of its own per level."""

    def __init__(
        self,
        config: dict,
        student: TapView,
        teacher: TapView,
        name: str,
        where: str,
        copies: int = 1,
    ) -> None:
        super().__init__(config, student, teacher, name, where)
        self.copies = copies  # images of the student's maps for one of the teacher's
        if config.get('select') is not None:
            raise ValueError(
                f'{self.where}: select={shown(config["select"])} chooses among the rows of a view '
                "such as 'cls_logits'; the tensors of a module path are compared whole."
            )
        self.resize = config.get('resize')
        if self.resize not in (None, 'bilinear'):
            raise ValueError(
                f"{self.where}: resize is None or 'bilinear', not {shown(self.resize)}."
            )

    @property
    def probed(self) -> list[TapPoint]:
        return self.student.points

    def connect(self, student: Recorder, teacher: Recorder, rng: Any) -> list[PlanRow]:
        captures, targets = self.student.read(student), self.teacher.read(teacher)
        if len(captures) != len(targets):
            raise TapError(
                f'{self.where}: the student tap gives {len(captures)} levels '
                f'({_shapes(captures)}) and the teacher tap {len(targets)} ({_shapes(targets)}). '
                'Choose the same ones on both sides, for example with dict(path=..., levels=[...]).'
            )
        rows = []
        for s, t in zip(captures, targets):
            loss = self.add_loss(rng)
            try:
                loss.connect(s.tensor.shape, t.tensor.shape)
            except ValueError as error:
                raise TapError(
                    f'{self.where}: student {s.label!r} is {tuple(s.tensor.shape)}, teacher '
                    f'{t.label!r} is {tuple(t.tensor.shape)}: {error}'
                ) from error
            self._check_size(s, t)
            wide = torch.promote_types(s.tensor.dtype, torch.float32)
            loss.to(device=s.tensor.device, dtype=wide)
            shapes = tuple(s.tensor.shape), tuple(t.tensor.shape)
            count = sum(p.numel() for p in loss.parameters())
            rows.append(PlanRow(self.name, s.label, t.label, *shapes, count, self.weight_text))
        return rows

    def compute(
        self, student: Recorder, teacher: Recorder, data_samples: Any
    ) -> tuple[dict[str, Tensor], list[Watched]]:
        captures, targets = self.student.read(student), self.teacher.read(teacher)
        if not len(captures) == len(targets) == len(self.losses):
            raise TapError(
                f'{self.where}: {len(self.losses)} levels were connected, but this step '
                f'gave {len(captures)} (student) and {len(targets)} (teacher).'
            )
        total, entries, watched = 0.0, {}, []
        for loss, s, t in zip(self.losses, captures, targets):
            refuse_gradient_free(s.tensor, s.label, self.where)
            self._check_size(s, t)
            target = self._resized(repeated(t.tensor, s.tensor, self.copies), s.tensor)
            total = total + loss(s.tensor, target)
            self.collect(loss, entries, 1 / len(self.losses))
            watched += [
                Watched(f'{role} tap {c.label!r} of term {self.name!r}', c.tensor)
                for role, c in (('student', s), ('teacher', t))
            ]
        return {f'loss_{self.name}': total * self.factor, **entries}, watched

    def _check_size(self, s: Capture, t: Capture) -> None:
        s_size, t_size = s.tensor.shape[2:], t.tensor.shape[2:]
        if s.tensor.dim() != t.tensor.dim() or (s_size != t_size and self.resize is None):
            raise TapError(
                f'{self.where}: sizes differ: student {s.label!r} is {tuple(s.tensor.shape)}, '
                f'teacher {t.label!r} is {tuple(t.tensor.shape)}. Tap levels of the same stride '
                "(tools/inspect_model.py shows them), or add resize='bilinear' to the term."
            )
        images = [list(x.tensor.shape[:1]) for x in (s, t)]  # a probe may run one branch only
        if images[0] not in (images[1], [self.copies * n for n in images[1]]):
            raise TapError(
                f'{self.where}: student {s.label!r} is {tuple(s.tensor.shape)}, teacher '
                f'{t.label!r} is {tuple(t.tensor.shape)}: their first dimensions differ, so the '
                'images of one are not those of the other. Of models that repeat their batch only '
                'TridentNet (num_branch) is known; else tap a module in front of that.'
            )

    def _resized(self, teacher: Tensor, student: Tensor) -> Tensor:
        if teacher.shape[2:] == student.shape[2:]:
            return teacher
        return nnf.interpolate(
            widen(teacher), size=student.shape[2:], mode='bilinear', align_corners=False
        )


def _shapes(captures: Sequence[Capture]) -> str:
    return ', '.join(f'{c.label} {tuple(c.tensor.shape)}' for c in captures)
