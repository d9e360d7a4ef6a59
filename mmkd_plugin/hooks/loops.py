"""What the length of a training and the unit that its loop counts in mean for the terms."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.runner import IterBasedTrainLoop, Runner

from ..distiller import Distiller
from ..terms.options import term_name
from ..weights import STEPS, parse_weight


def refuse_epochs(runner: Runner, terms: Sequence[dict]) -> None:
    """An iteration-based loop stays in epoch 0: the term would never begin, end or warm up."""
    if not isinstance(runner._train_loop, IterBasedTrainLoop):
        return
    for i, term in enumerate(terms):
        if isinstance(term, dict) and term.get('by_epoch'):
            raise ValueError(
                f'terms[{i}] counts epochs (by_epoch=True), but train_cfg counts iterations and '
                'is in epoch 0 from its first to its last. Give begin, end and warmup in '
                'iterations, without by_epoch.'
            )


def refuse_first_epoch(
    runner: Runner, terms: Sequence[dict], recipe: str | None, task_weight: float | str
) -> None:
    """A student that is its own teacher has nobody to learn from in its first epoch."""
    length = len(runner.train_dataloader)
    for i, term in enumerate(terms):
        if not isinstance(term, dict):
            continue  # attach says what is wrong with it
        if parse_weight(term.get('weight', 1.0), f'terms[{i}]: weight').is_auto:
            raise ValueError(
                f"terms[{i}] has weight={term['weight']!r} and teacher='previous_epoch': when an "
                'epoch begins, student and teacher are the same, so there is no gradient to '
                f'measure. Give it a number: weight=1, or --weight {term_name(term, i)}=1.'
            )
        begin, first = term.get('begin', 0), 1 if term.get('by_epoch') else length
        if not isinstance(begin, int) or begin >= first:
            continue
        if recipe is None:
            who, advice = f'terms[{i}]', 'Let it begin with the second: begin=1, by_epoch=True.'
        else:  # has no key for it; what a recipe schedules in a loop of epochs counts epochs
            who = f'The recipe {recipe!r}'
            later = [dict(term, begin=1, by_epoch=True) for term in terms]
            advice = (
                'Give its terms instead of its name, beginning with the second: '
                f'terms={later}, task_weight={task_weight!r}.'
            )
        raise ValueError(
            f"{who} begins in the first epoch, when teacher='previous_epoch' is still the student "
            f'before its training. {advice}'
        )


def length_of(runner: Runner) -> dict[str, int]:
    """How long training is, in the unit in which the schedules of a recipe are to be written."""
    loop = runner._train_loop
    if isinstance(loop, IterBasedTrainLoop):
        return dict(iterations=loop.max_iters)
    epochs = getattr(loop, 'max_epochs', None)  # a loop of the user's own need not say
    return {} if epochs is None else dict(epochs=epochs)


def limit_calibration(runner: Runner, distiller: Distiller) -> None:
    """A short run, or the rest of one, ends before the usual number of batches is measured."""
    loop = runner._train_loop
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    for term in distiller.terms:
        length = None if by_iteration else len(runner.train_dataloader)
        turns, left = (
            term.schedule.turns(loop.max_iters, length, STEPS, first) for first in (0, loop.iter)
        )
        distiller.calibration.limit(term, turns, left)
