"""One line of a distillation plan: a loss between a student tap and a teacher tap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from .functional.checks import widen
from .registry import build_loss, check_keys
from .schedule import Schedule
from .taps import Capture, TapError
from .views import View, make_view

TERM_KEYS = (
    'loss',
    'student',
    'teacher',
    'weight',
    'name',
    'begin',
    'end',
    'warmup',
    'by_epoch',
    'interval',
    'resize',
)
_SCHEDULE_KEYS = ('begin', 'end', 'warmup', 'by_epoch', 'interval')


class Term(nn.Module):
    """Distils every level of one tap with a loss module (and connectors) of its own per level.

    Args:
        config: a term as written in a config (see ``docs/usage.md``).
        student: resolves the student tap.
        teacher: resolves the teacher tap.
        index: position in the list of terms, for messages.

    Raises:
        ValueError: unknown key, bad weight or schedule, unknown loss.
        TapError: a tap that does not resolve.
    """

    def __init__(self, config: dict, student: nn.Module, teacher: nn.Module, index: int) -> None:
        super().__init__()
        where = f'terms[{index}]'
        if not isinstance(config, dict):
            raise ValueError(f"{where} must be a dict with 'loss' and 'student', got {config!r}.")
        check_keys(config, TERM_KEYS, where)
        for key in ('loss', 'student'):
            if key not in config:
                raise ValueError(f'{where} lacks {key!r}.')
        first_loss = build_loss(config['loss'], f'{where}.loss')
        default_name = type(first_loss).__name__.removesuffix('Loss').lower()
        self.name = config.get('name') or default_name
        if not isinstance(self.name, str):
            raise ValueError(
                f'{where}: name={self.name!r} must be a string; it is logged as loss_<name>.'
            )
        if 'loss' in self.name:
            raise ValueError(
                f"{where}: name={self.name!r} must not contain 'loss': the term is logged as "
                'loss_<name>, and MMEngine optimizes every entry with that word in its key.'
            )
        self.where = f'{where} ({self.name!r})'
        weight = config.get('weight', 1.0)
        if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f'{self.where}: weight={weight!r} must be a number, 0 or more.')
        self.weight = float(weight)
        try:
            self.schedule = Schedule(**{k: config[k] for k in _SCHEDULE_KEYS if k in config})
        except ValueError as error:
            raise ValueError(f'{self.where}: {error}') from None
        self.resize = config.get('resize')
        if self.resize not in (None, 'bilinear'):
            raise ValueError(f"{self.where}: resize is None or 'bilinear', not {self.resize!r}.")
        self.loss_config = dict(config['loss'])
        student_tap = config['student']
        teacher_tap = config.get('teacher') or student_tap
        self.student: View = make_view(
            student_tap, student, first_loss.needs, f'{self.where}.student'
        )
        self.teacher: View = make_view(teacher_tap, teacher, (), f'{self.where}.teacher')
        self.losses = nn.ModuleList()
        self.current_weight = self.weight
        self.active = self.weight > 0
        # A tensor, so that a ramp does not recompile a compiled step; never saved.
        self.register_buffer('factor', torch.tensor(self.weight), persistent=False)

    def connect(self, student: Sequence[Capture], teacher: Sequence[Capture], rng: Any) -> None:
        """Builds one loss per level, with connectors sized by the probe's captures.

        Raises:
            TapError: different numbers of levels, or shapes that cannot be compared.
        """
        if len(student) != len(teacher):
            raise TapError(
                f'{self.where}: the student tap gives {len(student)} levels '
                f'({_shapes(student)}) and the teacher tap {len(teacher)} ({_shapes(teacher)}). '
                'Choose the same ones on both sides, for example with dict(path=..., levels=[...]).'
            )
        for s, t in zip(student, teacher):
            loss = build_loss(self.loss_config, f'{self.where}.loss')
            loss.rng = rng
            try:
                features = s.extras.get('features')
                loss.connect(
                    s.tensor.shape, t.tensor.shape, None if features is None else features.shape
                )
            except ValueError as error:
                raise TapError(
                    f'{self.where}: student {s.label!r} is {tuple(s.tensor.shape)}, teacher '
                    f'{t.label!r} is {tuple(t.tensor.shape)}: {error}'
                ) from error
            self._check_size(s, t)
            wide = torch.promote_types(s.tensor.dtype, torch.float32)
            loss.to(device=s.tensor.device, dtype=wide)
            self.losses.append(loss)

    def update(self, iteration: int, epoch: int) -> None:
        """Sets activity and weight for a step."""
        weight = self.weight * self.schedule.factor(iteration, epoch)
        if weight != self.current_weight:  # or a kernel would be launched for nothing
            self.current_weight = weight
            self.factor.fill_(weight)
        self.active = weight > 0
        for loss in self.losses:
            loss.set_progress(iteration, epoch)

    def forward(self, student: Sequence[Capture], teacher: Sequence[Capture]) -> dict[str, Tensor]:
        """The term's entries in the loss dict, all scalars.

        Returns:
            ``loss_<name>``, the sum over the levels times the current weight; and where the loss
            has them, ``loss_<name>_<key>`` (auxiliary losses, unweighted) and ``<name>_<key>``
            (diagnostics, mean over the levels).
        """
        if not len(student) == len(teacher) == len(self.losses):
            raise TapError(
                f'{self.where}: {len(self.losses)} levels were connected, but this step '
                f'gave {len(student)} (student) and {len(teacher)} (teacher).'
            )
        total, entries = 0.0, {}
        for loss, s, t in zip(self.losses, student, teacher):
            self._check_size(s, t)
            extras = self._extras(loss, s)
            total = total + loss(s.tensor, self._resized(t.tensor, s.tensor), **extras)
            for key, value in loss.auxiliary.items():
                key = f'loss_{self.name}_{key}'
                entries[key] = entries.get(key, 0.0) + value
            for key, value in loss.report.items():
                key = f'{self.name}_{key}'
                entries[key] = entries.get(key, 0.0) + value / len(self.losses)
            loss.auxiliary, loss.report = {}, {}  # or they would keep the graph of this step
        return {f'loss_{self.name}': total * self.factor, **entries}

    def _extras(self, loss: nn.Module, capture: Capture) -> dict[str, Tensor]:
        missing = [name for name in loss.needs if name not in capture.extras]
        if missing:
            raise ValueError(
                f'{self.where}: {type(loss).__name__} needs {" and ".join(missing)}, but this step '
                'brought none: call the student with data_samples that hold gt_label.'
            )
        return {name: capture.extras[name] for name in loss.needs}

    def idle(self) -> Tensor:
        """Zero that touches every connector, so that DDP finds no unused parameter."""
        return sum((p.sum() for p in self.parameters()), self.factor.new_zeros(())) * 0.0

    def _check_size(self, s: Capture, t: Capture) -> None:
        s_size, t_size = s.tensor.shape[2:], t.tensor.shape[2:]
        if s.tensor.dim() != t.tensor.dim() or (s_size != t_size and self.resize is None):
            raise TapError(
                f'{self.where}: sizes differ: student {s.label!r} is {tuple(s.tensor.shape)}, '
                f'teacher {t.label!r} is {tuple(t.tensor.shape)}. Tap levels of the same stride '
                "(tools/inspect_model.py shows them), or add resize='bilinear' to the term."
            )

    def _resized(self, teacher: Tensor, student: Tensor) -> Tensor:
        if teacher.shape[2:] == student.shape[2:]:
            return teacher
        return nnf.interpolate(
            widen(teacher), size=student.shape[2:], mode='bilinear', align_corners=False
        )


def _shapes(captures: Sequence[Capture]) -> str:
    return ', '.join(f'{c.label} {tuple(c.tensor.shape)}' for c in captures)
