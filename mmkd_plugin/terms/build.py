"""From a term of a config to the module that computes it for a pair of models."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import TapError
from ..losses.base import LogitLoss
from ..teacher import Teacher
from ..views import TapView, make_view
from ..views.batch import copies_of
from .base import Term
from .config import check_term, taps_of
from .logit_term import LogitTerm
from .pairing import refuse_sigmoid_head
from .tap_term import TapTerm


def make_term(config: Any, student: nn.Module, teacher: Teacher, index: int) -> Term:
    """Builds a term of a config for a pair of models.

    Raises:
        ValueError: unknown key, bad weight or schedule, unknown loss.
        TapError: a tap or view that does not fit its model, or the other's.
    """
    where = f'terms[{index}]'
    name, loss = check_term(config, where)
    where = f'{where} ({name!r})'
    taps = taps_of(config)
    views = (
        make_view(taps[0], student, loss.needs, f'{where}.student'),
        make_view(taps[1], teacher.model, (), f'{where}.teacher'),
    )
    if views[0].compares_classes(student):
        teacher.refuse_other_classes(where)
    taps_only = [isinstance(view, TapView) for view in views]
    copies = copies_of(student, teacher.model, where)
    if all(taps_only):
        refuse_sigmoid_head(loss, views[0], student, where)
        return TapTerm(config, *views, name, where, copies)
    if any(taps_only):
        raise TapError(
            f'{where}: student={taps[0]!r} and teacher={taps[1]!r} are a view and a module path: '
            'rows of logits with a meaning, and a plain tensor. Give both of one kind.'
        )
    if views[0].follows:
        raise TapError(
            f'{where}: student={taps[0]!r} reads a teacher for the rows of a student. Name the '
            f"student's own rows: student='cls_logits', teacher={taps[0]!r}."
        )
    if not isinstance(loss, LogitLoss):
        raise TapError(
            f'{where}: {type(loss).__name__} compares feature maps, but student={taps[0]!r} gives '
            "rows of class logits. Tap a module path, such as 'neck', or take a loss on logits."
        )
    if copies > 1 and not views[0].repeats:
        raise TapError(
            f'{where}: {type(student).__name__} sees each image in {copies} branches, for which '
            f'the view {taps[0]!r} ({type(views[0]).__name__}) has no rows of a teacher. Distil '
            'features, such as the backbone.'
        )
    views[1].check_loss(loss)
    models = student, teacher.model
    return LogitTerm(config, *views, name, where, models, teacher.class_map, copies)
