"""What is distilled, as a hook, a call or a command line says it: terms or a recipe, and more."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from .. import recipes
from ..taps.probe import Probe
from ..terms.config import check_terms
from ..terms.options import (
    change_terms,
    check_term_options,
    refuse_contradictions,
    split_weights,
    term_name,
)
from ..weights.wishes import check_names, check_weights, fulfilled, joined


class Chosen(NamedTuple):
    """What a method is for one pair of models.

    Attributes:
        terms: plain dicts of their own, as a config writes them.
        task_weight: the factor on the student's own losses.
        remark: where terms and task weight come from, in a sentence; empty for terms of a config.
    """

    terms: list[dict]
    task_weight: float | str
    remark: str


class Method:
    """Terms or the name of a recipe, with changes by the names of the terms.

    Args:
        terms: list of terms; or
        recipe: name of a recipe.
        weights: ``'published'``, ``'auto'`` or ``dict(gdd=20)``, see ``weights/wishes.py``.
        term_options: changes to the terms, such as ``dict(kd=dict(loss=dict(temperature=2)))``.
        task_weight: by default what the recipe says, else 1.
        owner: who was given these, for messages.

    Raises:
        ValueError: neither or both of ``terms`` and ``recipe``, an unknown recipe, changes to
            terms that there are not, or values that cannot be.
    """

    def __init__(
        self,
        terms: Sequence[dict] | None = None,
        recipe: str | None = None,
        weights: Any = None,
        term_options: dict | None = None,
        task_weight: float | str | None = None,
        owner: str = 'DistillHook',
    ) -> None:
        if (terms is None) == (recipe is None):
            raise ValueError(
                f"{owner} needs either terms=[...] or recipe='...', and not both "
                f'(recipes: {", ".join(recipes.names())}).'
            )
        if terms is not None:
            check_terms(terms)
        self.terms = terms
        self.recipe = recipe
        self.task_weight = task_weight
        wishes = check_weights(weights)
        own, self.options = split_weights(check_term_options(term_options))
        refuse_contradictions(wishes, own, ('weights', 'term_options'))
        self.weights = joined(wishes, own)
        self._check_names(own)

    def _check_names(self, own: dict) -> None:
        """Before any model is built, where it is known what the terms are called."""
        names = [] if self.recipe is None else recipes.term_names(self.recipe)
        if self.terms is not None and (self.weights or self.options):
            names = [term_name(term, i) for i, term in enumerate(self.terms)]
        check_names([*own, *self.options], names, 'term_options')
        check_names(self.weights, names, 'weights')

    @property
    def changes(self) -> bool:
        """Whether the terms are others than those written out."""
        return bool(self.recipe is not None or self.weights or self.options)

    def resolve(
        self,
        student: nn.Module,
        teacher: nn.Module,
        length: dict[str, int] | None = None,
        size: Sequence[int] | Probe | None = None,
    ) -> Chosen:
        """The terms for this pair of models.

        The arguments are those of :func:`mmkd_plugin.recipes.resolve`.

        Raises:
            ValueError: whatever that refuses, or options that a loss does not take.
        """
        if self.recipe is not None:
            choice = recipes.choose(self.recipe, student, teacher, length, self.weights, size)
            terms, task_weight = choice.terms, choice.task_weight
            source = recipes.source(self.recipe, student)
            remark = f'Recipe {self.recipe!r} (published numbers: {source}).'
            if self.task_weight is None:
                remark += _shares_text(choice.task_weights)
            remark += f' {choice.remark}' if choice.remark else ''
        else:
            terms, task_weight, remark = list(self.terms or ()), 1.0, ''
            if self.weights:
                names = [term_name(term, i) for i, term in enumerate(terms)]
                terms = fulfilled(self.weights, names, terms, {})
        chosen = task_weight if self.task_weight is None else self.task_weight
        return Chosen(_plain(change_terms(terms, self.options)), chosen, remark)


def _shares_text(shares: dict[str, float]) -> str:
    """Of joined recipes with different wishes, which one counts."""
    if len(set(shares.values())) < 2:
        return ''
    wishes = ', '.join(map('{} {:g}'.format, shares, shares.values()))
    return f' task_weight={min(shares.values()):g} is the smallest of their wishes ({wishes}).'


def _plain(terms: Sequence[Any]) -> list:
    """The terms as plain dicts of their own, so that edits do not reach the config."""
    return [term.to_dict() if hasattr(term, 'to_dict') else copy.deepcopy(term) for term in terms]
