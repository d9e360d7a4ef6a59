"""What of a checkpoint concerns the distillation of the run that saves or loads it."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner

from ..distiller import Distiller
from ..saving.optimizer_state import join_connectors, split_connectors
from ..saving.student_config import student_config


def add_distillation(checkpoint: dict, distiller: Distiller, runner: Runner) -> None:
    """Makes a checkpoint a plain one of the student, with the distillation under ``distiller``.

    The configs in it become the plain student's, and the optimizer's state the student's own, so
    that tools and runs without this package can use the file.
    """
    connectors = dict(distiller.terms.named_parameters())
    checkpoint['distiller'] = dict(
        distiller.resume_state(),
        cfg=checkpoint['meta']['cfg'],
        optimizer=split_connectors(checkpoint, runner.optim_wrapper, connectors),
    )
    plain = student_config(runner.cfg).pretty_text
    checkpoint['meta']['cfg'] = plain
    info = checkpoint.get('message_hub', {}).get('runtime_info', {})
    if 'cfg' in info:
        info['cfg'] = plain


def restore(distiller: Distiller, checkpoint: dict, runner: Runner) -> None:
    """Gives a resumed run what its checkpoint says about the distillation, and tells what has
    changed since."""
    connectors = dict(distiller.terms.named_parameters())
    info = checkpoint.get('message_hub', {}).get('runtime_info', {})
    if 'cfg' in info:
        info['cfg'] = runner.cfg.pretty_text  # of this run, and not of the plain student
    state = checkpoint.get('distiller')
    if state is None:
        join_connectors(checkpoint, runner.optim_wrapper, connectors, {})
        anew = 'The connectors start anew. ' if connectors else ''
        _warn(
            f'The checkpoint to resume from was saved without distillation. {anew}'
            'Iterations and schedules go on from it; to start distilling a trained student from '
            'the beginning, use load_from instead of resume.'
        )
        return
    now, then = distiller.teacher.identity, state['teacher']
    for key in ('checkpoint', 'config'):
        if now.get(key) != then.get(key):
            _warn(
                f"The teacher's {key} is not the one this run was started with "
                f'({str(then.get(key))[:12]} then, {str(now.get(key))[:12]} now): the '
                'run will not continue as it would have.'
            )
            break
    changes = _changes(distiller, state)
    if changes:
        _warn(
            'The run goes on with other settings than those it was saved with:\n'
            + '\n'.join(f'  {change}' for change in changes)
        )
    distiller.load_resume_state(state)
    if 'optimizer' in state:  # older files have the connectors among the student's parameters
        join_connectors(checkpoint, runner.optim_wrapper, connectors, state['optimizer'])


def _changes(distiller: Distiller, state: dict) -> list[str]:
    if 'settings' in state:
        changes = _differences(state['settings'], distiller.settings())
    else:  # older files have the losses at most
        types = distiller.term_types()
        changes = _differences(dict(terms=state.get('terms', types)), dict(terms=types))
    then, now = state['seed'], distiller.rng.seed
    if then != now:
        changes.append(f'seed: {then} then, {now} now; the noise of the losses goes on with {then}')
    return changes


def _warn(message: str) -> None:
    print_log(message, 'current', logging.WARNING)


def _differences(then: Any, now: Any, path: str = '') -> list[str]:
    """One line for each value that is not the same in two nested dicts, with its path."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return [] if then == now else [f'{path}: {then!r} then, {now!r} now']
    found = []
    for key in dict.fromkeys([*then, *now]):
        here = f'{path}.{key}' if path else str(key)
        if key not in now:
            found.append(f'{here}: {then[key]!r} then, not set now')
        elif key not in then:
            found.append(f'{here}: not set then, {now[key]!r} now')
        else:
            found += _differences(then[key], now[key], here)
    return found
