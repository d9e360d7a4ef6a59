"""Changes to terms by their names: those of a recipe exist only once both models are built."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from .registry import check_keys, nearest
from .terms import TERM_KEYS, check_term


def check_term_options(options: Any) -> dict[str, dict]:
    """What can be wrong with them whatever the terms are.

    Args:
        options: ``dict(gdd=dict(weight=20), kd=dict(loss=dict(temperature=2)))``.

    Returns:
        The options, an empty dict for ``None``.

    Raises:
        ValueError: another form, or keys that terms do not have.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(f'term_options={options!r} must be a dict {_FORM}.')
    for name, changes in options.items():
        if not isinstance(changes, dict):
            raise ValueError(
                f'term_options[{name!r}]={changes!r} must be a dict of keys of that term {_FORM}.'
            )
        check_keys(changes, TERM_KEYS, f'term_options[{name!r}]')
    return options


_FORM = '(dict(gdd=dict(weight=20)), or --term-options gdd.weight=20)'


def change_terms(terms: Sequence[dict], options: dict[str, dict]) -> Sequence[dict]:
    """Puts the options into the terms of these names.

    Args:
        terms: of a config or a recipe; they are not changed.
        options: as :func:`check_term_options` returns them.

    Returns:
        The terms with the options in them.

    Raises:
        ValueError: a name that no term has, or values that a loss does not take.
    """
    if not options:
        return terms
    changed = list(terms)
    names = [check_term(term, f'terms[{i}]')[0] for i, term in enumerate(terms)]
    for name, changes in options.items():
        if name not in names:
            raise ValueError(
                f'term_options: no term is called {str(name)!r}; {nearest(str(name), names)}. '
                f'The terms are {", ".join(names)}.'
            )
        i = names.index(name)
        changed[i] = _merged(changed[i], changes)
        check_term(changed[i], f'term_options[{name!r}]')
    return changed


def _merged(old: Any, new: Any) -> Any:
    """Dicts are joined key by key; every other value is replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return copy.deepcopy(new)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
