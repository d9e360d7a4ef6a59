"""What every recipe weighs its term with, and where the number comes from, without any model."""

from __future__ import annotations

from typing import NamedTuple

from ..views import HeadSpec
from ..weights.wishes import PUBLISHED, wish_text
from . import classification, detection, features
from .defaults import default_weight
from .families import FAMILIES


class Row(NamedTuple):
    """A recipe for the models that it treats alike.

    Attributes:
        models: families of models, or what the rows of logits are.
        weight: the default.
        published: the weight in the recipe's table.
        source: where the numbers come from.
    """

    models: tuple[str, ...]
    weight: str
    published: str
    source: str


def rows(name: str) -> list[Row]:
    """What :func:`mmkd_plugin.recipes.resolve` would give the term of a recipe: a row for each
    group of models with equal numbers.
    """
    alike: dict[tuple[str, str, str], list[str]] = {}
    for kind, models, published, source in _all(name):
        weight = default_weight(name, kind)
        text = published if weight == PUBLISHED else wish_text(weight)
        alike.setdefault((text, published, source), []).append(models)
    return [Row(tuple(models), *numbers) for numbers, models in alike.items()]


def _all(name: str) -> list[tuple[str, str, str, str]]:
    """Kind, its name, published weight and source."""
    if name in features.RECIPES:
        settings = [(kind, *features.RECIPES[name].settings(kind)) for kind in FAMILIES]
        return [(kind, kind, f'{weight:g}', source) for kind, weight, _, source in settings]
    found = []
    if name in classification.names():
        (term,) = classification.plan(name, None, None)['terms']
        weight = f'{term["weight"]:g}'
        source = classification.SOURCES[name]
        found.append(('image', 'classifier', weight, source))
        if default_weight(name, 'published_pair') != default_weight(name, 'image'):
            found.append(('published_pair', 'classifiers of published pairs', weight, source))
    if name in detection.RECIPES:
        for kind, source in detection.RECIPES[name].sources.items():
            found.append((kind, detection.ROWS[kind], _weight(name, kind), source))
    return found


def _weight(name: str, kind: str) -> str:
    """Of a logit recipe; one that shares a number among the columns is told as such."""
    one, two = (
        detection.RECIPES[name].term(HeadSpec('head', kind, 'softmax', count), {})['weight']
        for count in (1, 2)
    )
    return f'{one:g}' if one == two else f'{one:g} / columns'
