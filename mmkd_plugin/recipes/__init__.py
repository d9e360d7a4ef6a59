"""Recipes: a method's name becomes the terms that fit a pair of models.

``features.py`` has the methods on feature maps, ``classification.py`` those on the class logits of
image classifiers, ``detection.py`` those on the logits of detectors and segmenters. Names joined by
``+`` are distilled together: ``'gdd+kd'``.
"""

from __future__ import annotations

from torch import nn

from ..registry import nearest
from . import classification, detection, features
from .families import FAMILIES, family

__all__ = ['FAMILIES', 'describe', 'family', 'names', 'resolve', 'source']

_ALONE = 'funmatch'  # a way to train, not only a loss


def names(model: nn.Module | None = None) -> list[str]:
    """Names that ``resolve`` and ``recipe=...`` of the hook accept, one by one or joined by ``+``.

    Args:
        model: only those for models of its kind.
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


def describe(name: str) -> str:
    """One line about a recipe.

    Raises:
        ValueError: if there is no such recipe.
    """
    return '; '.join(_describe(part) for part in _parts(name))


def source(name: str, model: nn.Module) -> str:
    """Where the hyper-parameters of a recipe come from for this kind of model."""
    parts = _parts(name)
    told = [_source(part, model) for part in parts]
    return told[0] if len(parts) == 1 else '; '.join(map('{}: {}'.format, parts, told))


def resolve(
    name: str, student: nn.Module, teacher: nn.Module, length: dict[str, int] | None = None
) -> dict:
    """Turns a recipe into terms for this pair of models.

    Args:
        name: one of :func:`names`, or several joined by ``+``.
        student: the model to train.
        teacher: the model to learn from.
        length: of the training, ``dict(epochs=...)`` or ``dict(iterations=...)``.

    Returns:
        ``dict(terms=[...], task_weight=...)``, as written in a config.

    Raises:
        ValueError: unknown recipe, a model no recipe fits, different numbers of levels, rows that
            do not correspond, or recipes that cannot be joined.

    Example:
        >>> resolve('gdd', student, teacher)['terms']  # doctest: +SKIP
        [{'loss': {'type': 'GDDLoss', 'temperature': 4.0, 'noise': 'channel'},
          'student': 'neck.fpn_convs.*.conv', 'teacher': 'neck.fpn_convs.*.conv', 'weight': 65.0}]
    """
    parts = _parts(name)
    plans = [_resolve(part, student, teacher, length or {}) for part in parts]
    weights = [plan['task_weight'] for plan in plans]
    if len(set(weights)) > 1:
        told = ', '.join(map('{} wants {:g}'.format, parts, weights))
        raise ValueError(
            f"The recipe {name!r} joins methods that weigh the student's own losses differently "
            f'({told}, as task_weight). Write their terms and a task_weight into the config.'
        )
    return dict(terms=[term for plan in plans for term in plan['terms']], task_weight=weights[0])


def _resolve(name: str, student: nn.Module, teacher: nn.Module, length: dict[str, int]) -> dict:
    if name in features.RECIPES:
        return features.plan(name, student, teacher)
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
    pair = _arch(teacher), _arch(student)
    if pair in classification.IMAGENET_DKD_BETA and counts[0] != 1000:
        pair = None, None  # the same networks on other data
    return classification.plan(name, *pair, **length)


def _parts(name: str) -> list[str]:
    """The recipes that a name joins.

    Raises:
        ValueError: unknown ones, or ones that cannot be joined.
    """
    parts = [part.strip() for part in str(name).split('+')]
    for part in parts:
        if part not in names():
            raise ValueError(
                f'There is no recipe {part!r}; {nearest(part, names())}. '
                f"All recipes: {', '.join(names())}. Several are joined by +: 'gdd+kd'."
            )
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
