"""Recipes: a method's name becomes the terms that fit a pair of models.

``features.py`` has the methods on feature maps, ``classification.py`` those on class logits.
"""

from __future__ import annotations

from torch import nn

from ..registry import nearest
from . import classification, features
from .families import FAMILIES, family

__all__ = ['FAMILIES', 'describe', 'family', 'names', 'resolve', 'source']


def names() -> list[str]:
    """Names that ``resolve`` and ``recipe=...`` of the hook accept."""
    return [*features.RECIPES, *classification.names()]


def describe(name: str) -> str:
    """One line about a recipe.

    Raises:
        ValueError: if there is no such recipe.
    """
    if _kind(name) is features:
        return features.RECIPES[name].summary
    return classification.describe(name)


def source(name: str, model: nn.Module) -> str:
    """Where the hyper-parameters of a recipe come from for this kind of model."""
    return features.source(name, model) if _kind(name) is features else classification.SOURCES[name]


def resolve(
    name: str, student: nn.Module, teacher: nn.Module, length: dict[str, int] | None = None
) -> dict:
    """Turns a recipe into terms for this pair of models.

    Args:
        name: one of :func:`names`.
        student: the model to train.
        teacher: the model to learn from.
        length: of the training, ``dict(epochs=...)`` or ``dict(iterations=...)``.

    Returns:
        ``dict(terms=[...], task_weight=...)``, as written in a config.

    Raises:
        ValueError: unknown recipe, a model no recipe fits, or different numbers of levels.

    Example:
        >>> resolve('gdd', student, teacher)['terms']  # doctest: +SKIP
        [{'loss': {'type': 'GDDLoss', 'temperature': 4.0, 'noise': 'channel'},
          'student': 'neck.fpn_convs.*.conv', 'teacher': 'neck.fpn_convs.*.conv', 'weight': 65.0}]
    """
    if _kind(name) is features:
        return features.plan(name, student, teacher)
    for role, model in (('student', student), ('teacher', teacher)):
        if family(model) != 'classification':
            raise ValueError(
                f'The recipe {name!r} distils the class logits of image classifiers, but the '
                f'{role} ({type(model).__name__}) is a {FAMILIES[family(model)]}. '
                f'For its features: {", ".join(features.RECIPES)}.'
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
    return classification.plan(name, *pair, **(length or {}))


def _kind(name: str):
    if name in features.RECIPES:
        return features
    if name in classification.names():
        return classification
    raise ValueError(
        f'There is no recipe {name!r}; {nearest(str(name), names())}. '
        f'All recipes: {", ".join(names())}.'
    )


def _arch(model: nn.Module) -> str | None:
    arch = getattr(model.backbone, 'arch', None)
    return arch if isinstance(arch, str) else None  # MMPreTrain's may be a whole table
