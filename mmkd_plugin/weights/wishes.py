"""Wishes about the weights of terms, by the names under which terms are logged.

A wish is a number, ``'auto'``, ``dict(ratio=0.3)`` or ``'published'``, the number of a recipe's
table. Text writes the ratio as ``ratio:0.3``. Wishes are kept as one dict ``{term name: wish}``, in
which ``'*'`` stands for every term that is not named. What is said later wins:

1. the default of the recipe, or ``weight`` of a term that the config writes itself,
2. the name of the recipe: ``recipe='gdd:20+kd:auto'``,
3. ``weights`` of the hook, and a ``weight`` in its ``term_options``,
4. on the command line ``--weights``, then ``--weight NAME=VALUE``.

``'*'`` speaks of all terms, so it puts everything aside that was said before it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..checks import check_number, nearest, shortened, shown
from .target import AUTO, parse_weight

ALL = '*'
PUBLISHED = 'published'
_RATIO = 'ratio:'
_WORDS = (AUTO, PUBLISHED)


def parse_text(text: str, where: str) -> Any:
    """A wish as text says it: ``20``, ``auto``, ``ratio:0.3`` or ``published``.

    Raises:
        ValueError: for anything else.
    """
    text = text.strip()
    if text in _WORDS:
        return text
    number = text.removeprefix(_RATIO)
    try:
        value = float(number)
    except ValueError:
        raise ValueError(
            f'{where}={shown(text)} is neither a number nor auto, published or ratio:0.3; '
            f'{nearest(text, [*_WORDS, _RATIO + "0.3"])}.'
        ) from None
    return check_wish(dict(ratio=value) if number != text else value, where)


def check_wish(value: Any, where: str) -> Any:
    """Refuses what no weight can be.

    Returns:
        The wish as a term takes it, or ``'published'``.

    Raises:
        ValueError: naming ``where``.
    """
    if isinstance(value, str):
        if value in _WORDS:
            return value
        raise ValueError(
            f"{where}={shown(value)} is neither a number nor 'auto', 'published' or "
            f'dict(ratio=0.3); {nearest(value, _WORDS)}.'
        )
    parse_weight(value, where)
    return dict(value) if isinstance(value, dict) else value


def check_weights(weights: Any, where: str = 'weights') -> dict[str, Any]:
    """The wishes of a config as a dict: of ``'published'``, ``'auto'`` or ``dict(gdd=20)``.

    Raises:
        ValueError: for another form, or a value that no weight can be.
    """
    if weights is None:
        return {}
    if isinstance(weights, str) and weights in _WORDS:
        return {ALL: weights}
    if isinstance(weights, Mapping):
        return {name: check_wish(wish, f'{where}[{name!r}]') for name, wish in weights.items()}
    near = f'; {nearest(weights, _WORDS)}' if isinstance(weights, str) else ''
    raise ValueError(
        f"{where}={shown(weights)} must be 'published' or 'auto', for all terms, or "
        f'dict(gdd=20), by the names of terms{near}.'
    )


def parse_flags(overall: str | None, single: Sequence[str] | None) -> dict[str, Any]:
    """What ``--weights`` and the ``--weight`` flags say together.

    Raises:
        ValueError: an unknown word, no ``=``, a bad value.
    """
    found = {}
    if overall is not None:
        if overall not in _WORDS:
            raise ValueError(
                f'--weights {shortened(overall)!r} must be published or auto, for all terms; '
                f'{nearest(overall, _WORDS)}. The weight of one term: --weight NAME=VALUE.'
            )
        found[ALL] = overall
    for item in single or ():
        name, equals, value = item.rpartition('=')  # a name may have one, too
        if not (name.strip() and equals):
            raise ValueError(
                f'--weight takes NAME=VALUE, such as gdd=20 or kd=auto, not {shortened(item)!r}.'
            )
        found[name.strip()] = parse_text(value, f'--weight {shortened(name.strip())}')
    return found


def joined(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Several dicts of wishes as one, in which later ones win."""
    result: dict[str, Any] = {}
    for layer in layers:
        if ALL in layer:
            result = {}
        result.update(layer)
    return result


def check_names(named: Iterable[str], names: Sequence[str], where: str) -> None:
    """Refuses names that no term has.

    Raises:
        ValueError: naming the nearest ones, and the terms there are.
    """
    for name in named:
        if name != ALL and name not in names:
            raise ValueError(
                f'{where}: no term is called {shown(name)}; {nearest(str(name), names)}. '
                f'The terms are {", ".join(names)}.'
            )


def fulfilled(
    wishes: Mapping[str, Any],
    names: Sequence[str],
    terms: Sequence[dict],
    published: Mapping[str, float],
) -> list[dict]:
    """The terms with the weights that were wished for.

    Args:
        wishes: by the names of terms.
        names: of the terms.
        terms: as a config writes them; they are not changed.
        published: weights that 'published' stands for, by name.

    Raises:
        ValueError: 'published' of a term that no table knows.
    """
    result = []
    for name, term in zip(names, terms):
        wish = wishes.get(name, wishes.get(ALL))
        if wish == PUBLISHED:
            if name not in published:
                raise ValueError(
                    f'weights: the term {name!r} is written in the config, so there is no '
                    'published number for it. Write the number, or take recipe=... in place of '
                    'terms.'
                )
            wish = published[name]
        result.append(term if wish is None else dict(term, weight=wish))
    return result


def wish_text(wish: Any) -> str:
    """A wish as text says it, see :func:`parse_text`."""
    if isinstance(wish, Mapping):
        return f'{_RATIO}{wish["ratio"]:g}'
    return wish if isinstance(wish, str) else f'{check_number(wish, "weight"):g}'


def flag_text(name: str, value: str) -> str:
    """What to type for a term's weight, in quotes where a shell needs them."""
    return f'--weight {shlex.quote(f"{name}={value}")}'
