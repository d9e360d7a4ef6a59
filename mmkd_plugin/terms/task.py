"""What distillation does with the losses that the student itself returned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..checks import check_number
from .base import Term

COMPLEMENT = 'complement'


def checked_task_weight(value: Any, terms: Iterable[Term]) -> float | str:
    """The factor on the student's own losses, as a config says it.

    Raises:
        ValueError: neither a number nor ``'complement'``, or terms that leave less than nothing.
    """
    auto = [term.name for term in terms if term.target is not None]
    if auto and value in (COMPLEMENT, 0):
        shown = f"'{COMPLEMENT}'" if value == COMPLEMENT else 0
        raise ValueError(
            f"task_weight={shown} and weight='auto' of {', '.join(auto)} exclude each other: an "
            "automatic weight is found beside the student's own losses, which must count. Give "
            f'the terms numbers (--weight {auto[0]}=1), or task_weight another value.'
        )
    if value == COMPLEMENT:
        total = sum(term.weight for term in terms)
        if total > 1:
            raise ValueError(
                f"task_weight='complement' leaves 1 - {total:g} to the student's own losses: the "
                'weights of the terms must add up to 1 or less.'
            )
        return COMPLEMENT
    if isinstance(value, str):
        raise ValueError(f"task_weight={value!r} must be a number, 0 or more, or 'complement'.")
    return check_number(value, 'task_weight', 0)


def weighted(losses: Any, task_weight: float | str, complement: Tensor) -> dict:
    """The student's losses times ``task_weight``, in a new dict.

    Raises:
        TypeError: if that is no dict.
    """
    if not isinstance(losses, dict):
        raise TypeError(
            f"The student's mode='loss' must return a dict of losses, got {type(losses).__name__}."
        )
    if task_weight == 1.0:
        return dict(losses)
    factor = complement if isinstance(task_weight, str) else task_weight
    result = {
        key: _scaled(value, factor) if 'loss' in key else value for key, value in losses.items()
    }
    if task_weight == 0.0:  # not learnt from, but worth watching
        for key, value in losses.items():
            if 'loss' in key:
                result[key.replace('loss', 'task')] = _detached(value)
    return result


def refuse_taken(key: str, name: str, losses: dict) -> None:
    """Refuses an entry of the term ``name`` that the student's losses already have.

    Raises:
        ValueError: naming both.
    """
    if key in losses:
        raise ValueError(
            f'The student already has an entry {key!r} in its losses; give the term '
            f"{name!r} another name (name='...')."
        )


def add_zero(losses: dict, zero: Tensor | int) -> None:
    """Adds a zero, for the sake of its graph, to one of the losses: no entry to be logged."""
    for key, value in losses.items():
        if 'loss' in key:
            several = isinstance(value, (list, tuple))
            losses[key] = [value[0] + zero, *value[1:]] if several else value + zero
            return


def _scaled(value: Any, factor: float | Tensor) -> Any:
    return [item * factor for item in value] if isinstance(value, (list, tuple)) else value * factor


def _detached(value: Any) -> Any:
    return [x.detach() for x in value] if isinstance(value, (list, tuple)) else value.detach()
