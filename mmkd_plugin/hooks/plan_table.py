"""The plan of a distillation as text: a row for each term, and the places where it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..distiller import Distiller
from ..terms.base import Term
from ..weights.wishes import flag_text

_HEADER = ('term', 'loss', 'student <- teacher', 'weight', 'schedule')


def plan_text(distiller: Distiller) -> str:
    """A table with a row for each term, and the weight that it has by now."""
    settings = distiller.settings()['terms']
    rows = [
        (
            term.name,
            settings[term.name]['loss']['type'],
            _place(settings[term.name]),
            _weight(distiller, term),
            term.schedule.text,
        )
        for term in distiller.terms
    ]
    return _table([_HEADER, *rows])


def places_text(distiller: Distiller) -> str:
    """Every pair of places with the shapes of the probe, one a line."""
    lines = [
        f'  loss_{r.term}: {r.student} {r.student_shape} <- {r.teacher} {r.teacher_shape}'
        + (f', {r.rows}' if r.rows else '')
        + f' ({r.connector_parameters:,} connector parameters)'
        for r in distiller.plan()
    ]
    return '\n'.join(lines)


def paste_text(distiller: Distiller, max_norm: float | None) -> str:
    """The options that repeat this run with the weights, and the limit of the gradient, that it
    found; empty if it finds none."""
    if all(term.target is None for term in distiller.terms):
        return ''
    known = distiller.weights()
    if len(known) < len(distiller.terms):
        waiting = ', '.join(term.name for term in distiller.terms if term.name not in known)
        return f'Weights still to be found: {waiting}.'
    flags = ' '.join(flag_text(name, f'{weight:g}') for name, weight in known.items())
    flags += '' if max_norm is None else f' --limit-spikes {max_norm:g}'
    return f'To repeat it with the weights that were found: {flags}'


def tap_text(tap: Any) -> str:
    """A tap in short: its path, and which levels or calls of it."""
    if isinstance(tap, (list, tuple)):
        return ', '.join(map(tap_text, tap))
    if not isinstance(tap, dict):
        return str(tap)
    more = ', '.join(f'{key} {value}' for key, value in tap.items() if key != 'path')
    return f'{tap["path"]} ({more})' if more else str(tap['path'])


def _place(settings: dict) -> str:
    student, teacher = settings['student'], settings.get('teacher')
    same = teacher is None or teacher == student
    return tap_text(student) if same else f'{tap_text(student)} <- {tap_text(teacher)}'


def _weight(distiller: Distiller, term: Term) -> str:
    if term.target is None or term.name not in distiller.weights():
        return term.weight_text
    return f"{term.weight:g}, found ({term.target:g} x the task's gradient)"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return '\n'.join(f'  {line.rstrip()}' for line in lines)
