"""What of a checkpoint concerns the distillation of the run that loads it."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log

from ..distiller import Distiller


def restore(distiller: Distiller, checkpoint: dict) -> None:
    """Gives a resumed run what its checkpoint says about the distillation, and tells what has
    changed since."""
    state = checkpoint.get('distiller')
    if state is None:
        print_log(
            'The checkpoint to resume from was saved without distillation; connectors '
            'start anew and the optimizer state may not fit. To start distilling a '
            'trained student, use load_from instead of resume.',
            'current',
            logging.WARNING,
        )
        return
    now, then = distiller.teacher.identity, state['teacher']
    for key in ('checkpoint', 'config'):
        if now.get(key) != then.get(key):
            print_log(
                f"The teacher's {key} is not the one this run was started with "
                f'({str(then.get(key))[:12]} then, {str(now.get(key))[:12]} now): the '
                'run will not continue as it would have.',
                'current',
                logging.WARNING,
            )
            break
    if 'settings' in state:
        changes = _differences(state['settings'], distiller.settings())
    else:  # older files have the losses at most
        types = distiller.term_types()
        changes = _differences(dict(terms=state.get('terms', types)), dict(terms=types))
    if changes:
        print_log(
            'The run goes on with other settings than those it was saved with:\n'
            + '\n'.join(f'  {change}' for change in changes),
            'current',
            logging.WARNING,
        )
    distiller.load_resume_state(state)


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
