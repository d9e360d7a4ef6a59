"""What a term of a config may say, before any model is looked at."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Any

from ..checks import check_keys, shown
from ..errors import placed
from ..losses.base import DistillLoss
from ..registry import build_loss
from ..weights import parse_weight
from ..weights.target import Weight
from ..weights.wishes import ALL
from .schedule import Schedule
from .selection import Selection, parse_select


@dataclass(frozen=True, eq=False)
class TermConfig:
    """A term as a config writes it, checked; see ``docs/usage.md`` for the keys.

    Attributes:
        loss: the arguments of the loss and its ``type``.
        student: where to listen in the student, a view or module paths.
        teacher: where to listen in the teacher; by default as in the student.
        name: what the term is logged as; by default the loss's.
        weight: a number, or the target of a calibrated one.
        select: the rows of a view that count, see :class:`Selection`; None for those of the loss.
        resize: ``'bilinear'`` for maps at module paths whose sizes differ.
        schedule: from the keys ``begin``, ``end``, ``warmup``, ``by_epoch`` and ``interval``.
        built: the loss, to ask what it needs and to copy.
    """

    loss: dict
    student: Any
    teacher: Any
    name: str
    weight: Weight
    select: Any
    resize: str | None
    schedule: Schedule
    built: DistillLoss

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys that a term may have."""
        own = [field.name for field in fields(cls) if field.name not in ('schedule', 'built')]
        return (*own, *_SCHEDULE)

    @classmethod
    def from_dict(cls, config: Any, where: str) -> TermConfig:
        """Reads a term of a config.

        Args:
            config: the term.
            where: its place in the config, such as ``terms[0]``.

        Raises:
            ValueError: a term that is no dict, lacks something, has a key that nothing reads or a
                value that does not fit; saying which.
        """
        name, loss = check_term(config, where)
        teacher = config.get('teacher')
        with placed(f'{where} ({name!r})'):
            return cls(
                loss=dict(config['loss']),
                student=config['student'],
                teacher=config['student'] if teacher is None else teacher,
                name=name,
                weight=parse_weight(config.get('weight', 1.0), 'weight'),
                select=config.get('select'),
                resize=config.get('resize'),
                schedule=Schedule(**{key: config[key] for key in _SCHEDULE if key in config}),
                built=loss,
            )

    def new_loss(self) -> DistillLoss:
        """One more loss of this term, not connected yet.

        A loss that draws weights when it is built is built again: every level has its own.
        """
        if next(self.built.parameters(), None) is None:
            return copy.deepcopy(self.built)
        return build_loss(self.loss, 'loss')

    def selection(self, where: str) -> Selection | None:
        """Which rows of a view count; None leaves it to view and loss.

        Raises:
            ValueError: something else was written.
        """
        return parse_select(self.select, f'{where}.select')


_SCHEDULE = tuple(field.name for field in fields(Schedule))


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
    check_keys(config, TermConfig.keys(), where)
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


def check_terms(terms: Any) -> None:
    """Refuses what is no list; each term is looked at when it is made.

    Raises:
        ValueError: saying what to write.
    """
    if not isinstance(terms, (list, tuple)):
        raise ValueError(
            f'terms={terms!r} must be a list with a dict for each term, such as '
            "[dict(loss=dict(type='GDDLoss'), student='neck')]."
        )
