"""The lines of a distillation plan: a loss between a place in the student and one in the teacher.

:class:`TapTerm` compares tensors at module paths, level by level; :class:`LogitTerm` compares the
class logits that views read. :class:`Term` is what they share.
"""

from .base import PlanRow, Term, Watched
from .build import make_term
from .config import TermConfig
from .logit_term import LogitTerm
from .selection import Selection, parse_select
from .tap_term import TapTerm

__all__ = [
    'LogitTerm',
    'PlanRow',
    'Selection',
    'TapTerm',
    'Term',
    'TermConfig',
    'Watched',
    'make_term',
    'parse_select',
]
