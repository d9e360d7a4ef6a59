"""From a term of a config to the module that computes it for a pair of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from ..errors import placed
from ..taps.body import body_of
from ..teacher import Teacher
from ..views import LogitView, TapView, make_view
from ..views.batch import copies_of
from ..views.classifier import ClassifierLogits
from .base import Term
from .config import TermConfig
from .logit_term import LogitTerm
from .pairing.places import check_views, refuse_sigmoid_head
from .tap_term import TapTerm


def make_terms(configs: Sequence[dict], student: nn.Module, teacher: Teacher) -> list[Term]:
    """Builds the terms of a config, each with a name of its own.

    Raises:
        ValueError: no term, two of one name, or see :func:`make_term`.
        TapError: see :func:`make_term`.
    """
    terms = [make_term(config, student, teacher, i) for i, config in enumerate(configs)]
    if not terms:
        raise ValueError('terms is empty: there is nothing to distil.')
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f'Two terms are called {name!r}; give each a name of its own '
                "(name='...'), because losses are logged as loss_<name>."
            )
    return terms


def make_term(config: Any, student: nn.Module, teacher: Teacher, index: int) -> Term:
    """Builds a term of a config for a pair of models.

    Raises:
        ValueError: unknown key, bad weight or schedule, unknown loss.
        TapError: a tap or view that does not fit its model, or the other's.
    """
    config = TermConfig.from_dict(config, f'terms[{index}]')
    where = f'terms[{index}] ({config.name!r})'
    views = (
        make_view(config.student, student, config.built.needs, f'{where}.student', 'student'),
        make_view(config.teacher, teacher.model, (), f'{where}.teacher', 'teacher'),
    )
    if views[0].compares_classes(student):
        teacher.refuse_other_classes(where)
    models = body_of(student).module, body_of(teacher.model).module
    with placed(where):
        copies = copies_of(*models)
        check_views(config, views, models, copies)
        if isinstance(views[0], TapView):
            refuse_sigmoid_head(config.built, views[0], student)
            kind = 'image_feature' if ClassifierLogits.fits(models[0]) else 'feature'
            taps = cast(tuple[TapView, TapView], views)  # both are of one kind: check_views
            return TapTerm(config, *taps, where, copies, kind)
        heads = cast(tuple[LogitView, LogitView], views)
        return LogitTerm(config, *heads, where, models, teacher.class_map, copies)
