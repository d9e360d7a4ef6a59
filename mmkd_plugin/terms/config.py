"""What a term of a config may say, before any model is looked at."""

from __future__ import annotations

from typing import Any

from ..checks import check_keys, shown
from ..losses.base import DistillLoss
from ..registry import build_loss

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
