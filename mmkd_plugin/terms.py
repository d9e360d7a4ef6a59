"""One line of a distillation plan: a loss between a place in the student and one in the teacher.

:class:`TapTerm` compares tensors at module paths, level by level; :class:`LogitTerm` (in
``logit_term.py``) compares the class logits that views read. :class:`Term` is what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from .checks import shown
from .functional.checks import widen
from .losses.base import DistillLoss
from .registry import build_loss, check_keys
from .schedule import Schedule
from .taps import Capture, Recorder, TapError, TapPoint
from .views import TapView, View
from .views.activation import activation_of, class_loss
from .views.batch import repeated
from .weights import parse_weight
from .weights.wishes import ALL

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
    'select',
)
_SCHEDULE_KEYS = ('begin', 'end', 'warmup', 'by_epoch', 'interval')


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


class Term(nn.Module):
    """A loss module (with connectors) for each level or head, a weight and a schedule.

    Args:
        config: a term as written in a config (see ``docs/usage.md``); its keys are checked.
        student: reads the student.
        teacher: reads the teacher.
        name: what it is logged as, see :func:`check_term`.
        where: names the term in messages, such as ``terms[0] ('kd')``.

    Raises:
        ValueError: bad weight or schedule.
    """

    def __init__(self, config: dict, student: View, teacher: View, name: str, where: str) -> None:
        super().__init__()
        self.loss_config = dict(config['loss'])
        self.name = name
        self.where = where
        self.config_weight = parse_weight(config.get('weight', 1.0), f'{self.where}: weight')
        self.weight = 1.0 if self.config_weight.is_auto else self.config_weight.number
        try:
            self.schedule = Schedule(**{k: config[k] for k in _SCHEDULE_KEYS if k in config})
        except ValueError as error:
            raise ValueError(f'{self.where}: {error}') from None
        self.student = student
        self.teacher = teacher
        self.losses = nn.ModuleList()
        self.ramp = 1.0  # what the schedule makes of the weight in this step
        self.current_weight = self.weight
        self.active = self.weight > 0
        self.last_turn: int | None = None  # iteration in which it acted last; None once it ended
        # A tensor, so that a ramp does not recompile a compiled step; never saved.
        self.register_buffer('factor', torch.tensor(self.weight), persistent=False)

    @property
    def kind(self) -> str:
        """What it compares, a key of :data:`mmkd_plugin.weights.TARGETS`."""
        raise NotImplementedError

    @property
    def target(self) -> float | None:
        """The gradient ratio to which its weight is calibrated; None for a given weight."""
        return self.config_weight.target(self.kind) if self.config_weight.is_auto else None

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

    def connect(self, student: Recorder, teacher: Recorder, rng: Any) -> list[PlanRow]:
        """Builds the loss modules; the recorders hold what a probe image gave, if it was asked for.

        Raises:
            TapError: places that cannot be compared.
        """
        raise NotImplementedError

    def compute(
        self, student: Recorder, teacher: Recorder, data_samples: Any
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

    def add_loss(self, rng: Any) -> nn.Module:
        """A new loss module for one more level or head, not connected yet."""
        loss = build_loss(self.loss_config, f'{self.where}.loss')
        loss.rng = rng
        self.losses.append(loss)
        return loss

    def collect(
        self,
        loss: nn.Module,
        entries: dict[str, Tensor],
        share: float,
        factor: Tensor | float = 1.0,
    ) -> None:
        """Moves what a loss has to say beside its value into the entries of the step.

        Auxiliary losses are added up, times ``factor``; diagnostics averaged, ``share`` being one
        loss's part.
        """
        for key, value in loss.auxiliary.items():
            key = f'loss_{self.name}_{key}'
            entries[key] = entries.get(key, 0.0) + value * factor
        for key, value in loss.report.items():
            key = f'{self.name}_{key}'
            entries[key] = entries.get(key, 0.0) + value * share
        loss.auxiliary, loss.report = {}, {}  # or they would keep the graph of this step


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
        kind: str = 'feature',
    ) -> None:
        super().__init__(config, student, teacher, name, where)
        self.copies = copies  # images of the student's maps for one of the teacher's
        self._kind = kind
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
    def kind(self) -> str:
        return self._kind

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


def check_term(config: Any, where: str) -> tuple[str, DistillLoss]:
    """Refuses a term that is no dict, lacks something or has a key that nothing reads.

    Returns:
        The name of the term, and its loss, to ask what it needs.

    Raises:
        ValueError: saying which, also for an unknown loss and a bad name.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{where} must be a dict with 'loss' and 'student', got {shown(config)}.")
    if 'class_map' in config:
        raise ValueError(f'{where}: class_map is for all terms; write it into teacher=dict(...).')
    check_keys(config, TERM_KEYS, where)
    for key in ('loss', 'student'):
        if key not in config:
            raise ValueError(f'{where} lacks {key!r}.')
    loss = build_loss(config['loss'], f'{where}.loss')
    name = config.get('name')
    if name is None:
        name = type(loss).__name__.removesuffix('Loss').lower()
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        raise ValueError(
            f'{where}: name={shown(name)} must be a short string (1 to 100 characters); it is '
            'logged as loss_<name>.'
        )
    if name == ALL:
        raise ValueError(
            f'{where}: name={name!r} stands for all terms where weights are said (weights='
            'dict(...)). Give the term another name.'
        )
    if 'loss' in name:
        raise ValueError(
            f"{where}: name={name!r} must not contain 'loss': the term is logged as loss_<name>, "
            'and MMEngine optimizes every entry with that word in its key.'
        )
    return name, loss


def taps_of(config: dict) -> tuple[Any, Any]:
    """Where a term listens in student and teacher; the teacher's is the student's by default."""
    teacher = config.get('teacher')
    return config['student'], config['student'] if teacher is None else teacher


def refuse_sigmoid_head(loss: DistillLoss, tap: TapView, model: nn.Module, where: str) -> None:
    """Refuses a softmax over the columns of a head that has a sigmoid for each class.

    Raises:
        TapError: unless the loss was told ``use_sigmoid``.
    """
    if getattr(loss, 'use_sigmoid', True) is not None:
        return
    for point in tap.points:
        names = point.path.split('.')
        for depth in range(len(names) + 1):  # a model may have no head, and a loss of its own
            owner = model.get_submodule('.'.join(names[:depth]))
            if _has_sigmoids(owner):
                raise TapError(
                    f'{where}: {point.path!r} belongs to {type(owner).__name__}, whose loss has a '
                    f'sigmoid for each class, and {type(loss).__name__} would take a softmax over '
                    "the classes. Take the view student='cls_logits', which follows the head, or "
                    'say use_sigmoid=True in the loss.'
                )


def _has_sigmoids(owner: nn.Module) -> bool:
    found = class_loss(owner)
    if found is None:
        return False
    classes = getattr(owner, 'num_classes', None)
    classes = classes if isinstance(classes, int) and classes > 0 else 2
    tensor = next(owner.parameters(), None)
    device = None if tensor is None else tensor.device
    return activation_of(found, classes, device) == 'sigmoid'


def refuse_gradient_free(tensor: Tensor, label: str, where: str) -> None:
    """Refuses a student tensor from which no gradient would reach the student."""
    if torch.is_grad_enabled() and not tensor.requires_grad:
        raise TapError(
            f'{where}: the student tensor at {label!r} carries no gradient, so the term could not '
            'train the student: the tap lies in a frozen or activation-checkpointed part. Tap a '
            'later module.'
        )


def _shapes(captures: Sequence[Capture]) -> str:
    return ', '.join(f'{c.label} {tuple(c.tensor.shape)}' for c in captures)
