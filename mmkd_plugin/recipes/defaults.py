"""The weight that each recipe gives its term where nobody says another one.

``'published'`` is the number of the recipe's table with its source (``features.py``,
``classification.py``, ``detection.py``). ``'auto'``, ``dict(ratio=...)`` and numbers are the other
choices. A kind is the family of the models for methods on features, and what a row is for methods
on logits (``'image'`` of classifiers, ``'published_pair'`` of those whose training has published
numbers, ``'roi'``, ``'dense'``, ``'query'``, ``'pixel'``, ``'keypoint'``). ``'*'`` stands for the
kinds that are not named.
"""

from __future__ import annotations

from typing import Any

from ..weights import AUTO
from ..weights.wishes import PUBLISHED

_ANY = '*'
# Measured: docs/weights.md. KD of RoIs and dense heads finds its weight, because 1 holds a new
# student on its first plateau under plain SGD, and that of queries, where 2 was a little worse. So
# does DKD of classifiers (and its kin with LoCa), whose 1 belongs to 240 epochs and a beta for each
# pair. Others keep their numbers. Not measured: keypoints, where the squared error of heat maps is
# a thousandth of a KL.
DEFAULTS: dict[str, dict[str, Any]] = {
    'gdd': {_ANY: AUTO},
    'gdd-shared': {_ANY: AUTO},
    'cwd': {_ANY: AUTO},
    'mgd': {_ANY: AUTO},
    'pkd': {_ANY: AUTO},
    'kd': {_ANY: PUBLISHED, 'dense': AUTO, 'roi': AUTO, 'query': AUTO, 'keypoint': AUTO},
    'dkd': {_ANY: PUBLISHED, 'image': AUTO},
    'loca': {_ANY: PUBLISHED},
    'dkd-loca': {_ANY: PUBLISHED, 'image': AUTO},
    'ckd': {_ANY: PUBLISHED},
    'ipwd': {_ANY: PUBLISHED},
    'ipwd-inverse': {_ANY: PUBLISHED},
    'funmatch': {_ANY: PUBLISHED},
    'kd-bins': {_ANY: PUBLISHED},
    'boxes': {_ANY: AUTO},
    'kd-masks': {_ANY: PUBLISHED},
}


def default_weight(recipe: str, kind: str) -> Any:
    """The default of a recipe for a family or a kind of rows, as a wish about weights."""
    table = DEFAULTS[recipe]
    return table.get(kind, table[_ANY])
