"""Changes to terms by their names: those of a recipe exist only once both models are built."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ..checks import check_keys
from ..weights.wishes import check_names, check_wish
from .config import TermConfig, check_term


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
        check_keys(changes, TermConfig.keys(), f'term_options[{name!r}]')
    return options


_FORM = '(dict(gdd=dict(weight=20)), or --term-options gdd.weight=20)'


def split_weights(options: dict[str, dict]) -> tuple[dict[str, Any], dict[str, dict]]:
    """Takes the weights out of the options: they are wishes like those of ``weights``.

    Args:
        options: as :func:`check_term_options` returns them.

    Returns:
        Wishes by the names of the terms, and the other options.

    Raises:
        ValueError: a value that no weight can be.
    """
    wishes, rest = {}, {}
    for name, changes in options.items():
        changes = dict(changes)
        if 'weight' in changes:
            wish = changes.pop('weight')
            wishes[name] = check_wish(wish, f'term_options[{name!r}].weight')
        if changes:
            rest[name] = changes
    return wishes, rest


def refuse_contradictions(weights: dict, wishes: dict, where: tuple[str, str]) -> None:
    """Refuses two different weights for one term, said side by side in the places ``where``.

    Raises:
        ValueError: if they differ.
    """
    for name in wishes:
        if name in weights and weights[name] != wishes[name]:
            raise ValueError(
                f'{where[0]} gives the term {name!r} the weight {weights[name]!r}, and {where[1]} '
                f'{wishes[name]!r}. Say one of them.'
            )


def term_name(term: Any, i: int) -> str:
    """What the i-th term is called and logged as.

    Raises:
        ValueError: a term that is wrong in itself.
    """
    return check_term(term, f'terms[{i}]')[0]


def change_terms(terms: Sequence[dict], options: dict[str, dict]) -> Sequence[dict]:
    """Puts the options into the terms of these names.

    Args:
        terms: of a config or a recipe; they are not changed.
        options: as :func:`split_weights` returns them.

    Returns:
        The terms with the options in them.

    Raises:
        ValueError: a name that no term has, or values that a loss does not take.
    """
    if not options:
        return terms
    changed = list(terms)
    names = [term_name(term, i) for i, term in enumerate(terms)]
    check_names(options, names, 'term_options')
    for name, changes in options.items():
        i = names.index(name)
        changed[i] = _merged(changed[i], changes)
        check_term(changed[i], f'term_options[{name!r}]')
    return changed


def _merged(old: Any, new: Any) -> Any:
    """Dicts are joined key by key; every other value is replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return copy.deepcopy(new)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
