"""Recipes: a method's name becomes the terms that fit a pair of models.

``features.py`` has the methods on feature maps, ``classification.py`` those on the class logits of
image classifiers, ``detection.py`` those on the logits of detectors and segmenters. Names joined by
``+`` are distilled together: ``'gdd+kd'``. A colon gives the weight of a method's term:
``'gdd:20+kd:auto'``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from ..checks import nearest
from ..images.size import image_size
from ..taps.body import body_of, hears_images
from ..taps.probe import Probe
from ..weights.wishes import check_names, check_weights, fulfilled, joined, parse_text
from . import classification, detection, features
from .defaults import default_weight
from .families import FAMILIES, family

__all__ = [
    'FAMILIES',
    'Choice',
    'choose',
    'default_recipe',
    'describe',
    'family',
    'grouped',
    'methods',
    'names',
    'resolve',
    'source',
    'term_names',
]

_ALONE = 'funmatch'  # a way to train, not only a loss


def names(model: nn.Module | None = None) -> list[str]:
    """Names that ``resolve`` and ``recipe=...`` of the hook accept, one by one or joined by ``+``;
    of a model, those for its kind.
    """
    for_classifiers, for_detectors = classification.names(), list(detection.RECIPES)
    try:
        kind = None if model is None else family(model)
    except ValueError:  # no recipe will fit, for a reason that resolve gives
        kind = None
    if kind is None:
        known = list(dict.fromkeys([*for_classifiers, *for_detectors]))
    else:
        known = for_classifiers if kind == 'classification' else for_detectors
    return [*features.RECIPES, *known]


def grouped() -> dict[str, list[str]]:
    """The names of all recipes, by what they distil."""
    for_classifiers, for_detectors = classification.names(), list(detection.RECIPES)
    return {
        'method on features': list(features.RECIPES),
        'on logits': [name for name in for_classifiers if name in for_detectors],
        'for boxes and masks': [name for name in for_detectors if name not in for_classifiers],
        'for classifiers': [name for name in for_classifiers if name not in for_detectors],
    }


def default_recipe(classifier: bool) -> str:
    """The recipe of those who name neither a recipe nor terms."""
    return 'kd' if classifier else 'gdd'


def describe(name: str) -> str:
    """One line about a recipe.

    Raises:
        ValueError: if there is no such recipe.
    """
    return '; '.join(_describe(part) for part in methods(name))


def source(name: str, model: nn.Module) -> str:
    """Where the hyper-parameters of a recipe come from for this kind of model."""
    parts = methods(name)
    found = [_source(part, model) for part in parts]
    return found[0] if len(parts) == 1 else '; '.join(map('{}: {}'.format, parts, found))


def methods(name: str) -> list[str]:
    """The recipes that a name joins, without their weights.

    Raises:
        ValueError: unknown ones, or ones that cannot be joined.
    """
    parts = [part for part, _ in _split(name)]
    for part, weight in _split(name):
        if part not in names():
            raise ValueError(
                f'There is no recipe {part!r}; {nearest(part, names())}. '
                f"All recipes: {', '.join(names())}. Several are joined by +: 'gdd+kd'."
            )
        if weight is not None:
            parse_text(weight, f'recipe {name!r}: the weight of {part}')
    if _ALONE in parts and len(parts) > 1:
        raise ValueError(
            f'The recipe {name!r} joins {_ALONE}, which is a way to train more than a loss (mixup, '
            'optimizer, schedule, no labels), with another method. Take one of them.'
        )
    logged = [_logged_as(part) for part in parts]
    for key in logged:
        if logged.count(key) > 1:
            raise ValueError(
                f'The recipe {name!r} has two terms {key!r}, which would both be logged as '
                f'loss_{key}. Name each method once.'
            )
    return parts


def term_names(name: str) -> list[str]:
    """The names of the terms that a recipe makes, known without any model.

    Raises:
        ValueError: if there is no such recipe.
    """
    return [_logged_as(part) for part in methods(name)]


def resolve(
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    length: dict[str, int] | None = None,
    weights: Any = None,
    size: Sequence[int] | Probe | None = None,
) -> dict:
    """Turns a recipe into terms for this pair of models.

    Args:
        name: one of :func:`names`, or several joined by ``+``, each with ``:WEIGHT`` or without.
        student: the model to train.
        teacher: the model to learn from.
        length: of the training, ``dict(epochs=...)`` or ``dict(iterations=...)``.
        weights: ``'published'``, ``'auto'`` or ``dict(gdd=20)``, by the names of the terms; it wins
            over a weight in ``name``, and both over the recipe's default.
        size: height and width of the image by which the strides of necks are measured, or the
            probe itself; by default what the student says, else (256, 256).

    Returns:
        ``dict(terms=[...], task_weight=...)``: the terms as a config writes them, each with its
        ``weight``, and the factor on the student's own losses. :func:`attach` takes both as they
        are. :func:`choose` tells more.

    Raises:
        ValueError: unknown recipe, a model no recipe fits, levels of which none share a stride,
            rows that do not correspond, recipes that cannot be joined, or a weight of a term that
            the recipe does not have.

    Example:
        >>> resolve('gdd', student, teacher, weights='published')['terms']  # doctest: +SKIP
        [{'loss': {'type': 'GDDLoss', 'temperature': 4.0, 'noise': 'channel'},
          'student': 'neck.fpn_convs.*.conv', 'teacher': 'neck.fpn_convs.*.conv', 'weight': 65.0}]
    """
    choice = choose(name, student, teacher, length, weights, size)
    return dict(terms=choice.terms, task_weight=choice.task_weight)


class Choice(NamedTuple):
    """What a recipe is for a pair of models.

    Attributes:
        terms: as a config writes them.
        task_weights: the factor on the student's own losses that each method wants, by its name.
        published: the weight of each term in the recipe's table, by the name of the term;
            :func:`source` says where it comes from.
        remark: which levels of the necks were paired, in a sentence; empty where all of both are.
    """

    terms: list[dict]
    task_weights: dict[str, float]
    published: dict[str, float]
    remark: str

    @property
    def task_weight(self) -> float:
        """The smallest wish: beside no method the labels count more than it asked for."""
        return min(self.task_weights.values())


def choose(
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    length: dict[str, int] | None = None,
    weights: Any = None,
    size: Sequence[int] | Probe | None = None,
) -> Choice:
    """The same as :func:`resolve`, with what it was made of."""
    keys = term_names(name)
    size = image_size(student) if size is None else size
    probe = size if isinstance(size, Probe) else Probe(size)
    if hears_images(body_of(student)):
        probe = probe.of_body()
    said = joined(_said(name), check_weights(weights))
    check_names(said, keys, 'weights')
    plans = {part: _resolve(part, student, teacher, length or {}, probe) for part in methods(name)}
    defaults = [default_weight(part, plan['kind']) for part, plan in plans.items()]
    terms = [plan['terms'][0] for plan in plans.values()]
    published = {key: term['weight'] for key, term in zip(keys, terms)}
    terms = fulfilled(joined(dict(zip(keys, defaults)), said), keys, terms, published)
    task_weights = {part: plan['task_weight'] for part, plan in plans.items()}
    remark = dict.fromkeys(
        plan.get('remark', '') for plan in plans.values()
    )  # once for all methods
    return Choice(terms, task_weights, published, ' '.join(filter(None, remark)))


def _resolve(
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    length: dict[str, int],
    probe: Probe,
) -> dict:
    if name in features.RECIPES:
        return features.plan(name, student, teacher, probe)
    student, teacher = (body_of(model).module for model in (student, teacher))
    kinds = {family(model) for model in (student, teacher)}
    if 'classification' not in kinds and name in detection.RECIPES:
        return detection.plan(name, student, teacher, length)
    for role, model in (('student', student), ('teacher', teacher)):
        if family(model) != 'classification':
            raise ValueError(
                f'The recipe {name!r} distils the class logits of image classifiers here, but the '
                f'{role} ({type(model).__name__}) is a {FAMILIES[family(model)]}. '
                f'For it: {", ".join(names(model))}.'
            )
    if name not in classification.names():
        raise ValueError(
            f'The recipe {name!r} distils boxes or masks, which image classifiers do not have.'
        )
    counts = [getattr(model.head, 'num_classes', None) for model in (student, teacher)]
    if None not in counts and counts[0] != counts[1]:
        raise ValueError(
            f'The recipe {name!r} compares class logits, but the student has {counts[0]} classes '
            f'and the teacher {counts[1]} (num_classes of their heads). Take a teacher of the '
            f"student's classes, or distil features: {', '.join(features.RECIPES)}."
        )
    pair: classification.Pair = _arch(teacher), _arch(student)
    if pair in classification.IMAGENET_DKD_BETA and counts[0] != 1000:
        pair = None, None  # the same networks on other data
    epochs, iterations = length.get('epochs'), length.get('iterations')
    made = classification.plan(name, *pair, epochs=epochs, iterations=iterations)
    published = classification.is_published(pair, counts[0])
    return dict(made, kind='published_pair' if published else 'image')


def _split(name: str) -> list[tuple[str, str | None]]:
    """Methods and the texts of their weights. The plus of ``1e+3`` does not join."""
    parts = [part.partition(':') for part in re.split(r'\+(?!\d)', str(name))]
    return [(method.strip(), text if colon else None) for method, colon, text in parts]


def _said(name: str) -> dict[str, Any]:
    """The weights that a name gives its terms."""
    return {
        _logged_as(part): parse_text(text, f'recipe {name!r}')
        for part, text in _split(name)
        if text is not None
    }


def _logged_as(name: str) -> str:
    """Name of a recipe's term; those on features are named after their loss."""
    if name in features.RECIPES:
        return features.RECIPES[name].loss.removesuffix('Loss').lower()
    return name.replace('-', '_')


def _describe(name: str) -> str:
    if name in features.RECIPES:
        return features.RECIPES[name].summary
    if name in classification.names():
        return classification.describe(name)
    return detection.RECIPES[name].summary


def _source(name: str, model: nn.Module) -> str:
    if name in features.RECIPES:
        return features.source(name, model)
    if family(model) == 'classification':
        return classification.SOURCES[name]
    return detection.source(name, model)


def _arch(model: nn.Module) -> str | None:
    arch = getattr(model.backbone, 'arch', None)
    return arch if isinstance(arch, str) else None  # MMPreTrain's may be a whole table
