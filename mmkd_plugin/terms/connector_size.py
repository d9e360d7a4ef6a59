"""Warns of connectors that are larger than the student which they shall help."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mmengine.logging import print_log
from torch import nn

from ..losses import GenerativeLoss
from .base import Term

FEW = 1_000_000  # parameters that cost too little to speak of, however small the student is
NARROWER = 8  # by this the proposed width of a generator is below the teacher's


def tell_large_connectors(terms: Iterable[Term], student: nn.Module) -> None:
    """Logs a warning for each term whose connectors have more parameters than the student.

    Args:
        terms: connected.
        student: without connectors of its own.
    """
    own = _count(student)
    for term in terms:
        count = _count(term)
        if count > max(own, FEW):
            print_log(
                f'{term.where}: the connectors of {term.name!r} have {count:,} parameters, the '
                f'whole student has {own:,}. They are trained in every step. {_advice(term)}',
                'current',
                logging.WARNING,
            )


def _advice(term: Term) -> str:
    generators = [x for x in term.losses if isinstance(x, GenerativeLoss) and x.width is None]
    channels = max((x.channels[1] for x in generators if x.channels), default=0)
    if channels < 2 * NARROWER:
        return 'Tap narrower maps, such as those of a neck.'
    width, loss = channels // NARROWER, type(generators[0]).__name__
    return (
        f"loss=dict(type='{loss}', width={width}) in the term, or --term-options "
        f'{term.name}.loss.width={width}, makes its generator {NARROWER} times smaller. '
        'Maps of a neck are narrower, too.'
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
