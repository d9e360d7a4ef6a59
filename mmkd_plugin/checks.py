"""Values of a config, each refused by its key, with what it should have been.

Python takes ``'False'`` for true and ``True`` for 1; a config that says so is a slip, and would
train something else without a word.
"""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any


def check_bool(value: Any, where: str) -> bool:
    """Refuses a value of the key ``where`` that is neither ``True`` nor ``False``.

    Raises:
        ValueError: for strings, numbers, lists and None.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{where}={shown(value)} must be True or False.')
    return value


def check_int(value: Any, where: str, minimum: int | None = None) -> int:
    """Refuses a value of the key ``where`` that is no whole number; ``True`` is none.

    Raises:
        ValueError: for another type, or a number that is too small.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (minimum is not None and value < minimum):
        raise ValueError(f'{where}={shown(value)} must be a whole number{_at_least(minimum)}.')
    return value


def check_number(value: Any, where: str, minimum: float | None = None) -> float:
    """Refuses a value of the key ``where`` that is no finite number; ``True`` is none.

    Raises:
        ValueError: for another type, NaN, Inf, or a number that is too small.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value)) or (minimum is not None and value < minimum):
        raise ValueError(f'{where}={shown(value)} must be a finite number{_at_least(minimum)}.')
    return float(value)


def shown(value: Any) -> str:
    """A value as a message shows it: its ``repr``, without the end of a long one."""
    return shortened(repr(value), 120)


def shortened(value: object, length: int = 200) -> str:
    """A name for a message, which nobody reads to the end when it has thousands of characters."""
    text = str(value)
    return text if len(text) <= length else f'{text[:length]}... ({len(text)} characters)'


def _at_least(minimum: float | None) -> str:
    return '' if minimum is None else f', {minimum:g} or more'


def near_matches(name: str, names: Iterable[str], count: int = 4) -> list[str]:
    """The valid names most like ``name``; 'GDD' is like 'gdd'."""
    names, name = list(names), str(name)[:200]
    if close := difflib.get_close_matches(name, names, n=count, cutoff=0.4):
        return close
    lower = {known.lower(): known for known in names}
    found = difflib.get_close_matches(name.lower(), lower, n=count, cutoff=0.4)
    return [lower[known] for known in found]


def nearest(name: str, names: Iterable[str], count: int = 4) -> str:
    """Formats the valid names most like ``name``, for an error message."""
    names = list(names)
    if close := near_matches(name, names, count):
        return 'nearest: ' + ', '.join(repr(n) for n in close)
    return 'valid: ' + ', '.join(repr(n) for n in sorted(names)[:20])


def carry_old_names(cls: type, **names: str) -> None:
    """Gives what a user's class defines under an old name to the new one, and warns."""
    for old, new in names.items():
        if old in vars(cls) and new not in vars(cls):
            setattr(cls, new, vars(cls)[old])
            warnings.warn(f'{cls.__name__}.{old} is called {new} now.', DeprecationWarning, 3)


def arguments(function: Callable) -> list[str]:
    """The names that a function (or a class, of its constructor) takes as arguments."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def check_keys(cfg: dict, valid: Iterable[str], where: str) -> None:
    """Refuses keys that nothing would read.

    Raises:
        ValueError: naming the unknown key and the nearest valid ones.
    """
    valid = list(valid)
    for key in cfg:
        if key not in valid:
            raise ValueError(f'{where} has an unknown key {shown(key)}; {nearest(key, valid)}.')


def split_type(cfg: Any, where: str, example: str, what: str = 'a dict') -> tuple[Any, dict]:
    """The ``type`` of a part and its other keys, for those who build it themselves.

    Raises:
        ValueError: if ``cfg`` is no dict, or has no type.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise ValueError(
            f"{where} must be {what} with a 'type', for example dict(type={example!r}), "
            f'but it is {shown(cfg)}.'
        )
    kwargs = dict(cfg)
    return kwargs.pop('type'), kwargs
