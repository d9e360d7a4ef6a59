"""The table of docs/coverage.md on pairs of kinds, from the file of ``detection_matrix.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import summary
from benchmarks.coverage_table import short_reason

TERMS = dict(classes='classes', boxes='boxes')
OK = 'ok'
WORDS = dict(
    silent='found no box that meets a region',
    refused='refused',
    crashed='**crashed**',
)


def text(content: dict[str, Any]) -> str:
    """Counts, a row for each student, and what was said where a pair takes no step."""
    rows = content['rows']
    versions = ', '.join(f'{name} {version}' for name, version in content['versions'].items())
    counts = ', '.join(
        f'{title}: {len(outcomes(rows, term, OK))} of {len(outcomes(rows, term))}'
        for term, title in TERMS.items()
    )
    return '\n\n'.join(
        filter(None, [f'Pairs that learn ({versions}): {counts}.', _table(rows), _reasons(rows)])
    )


def outcomes(rows: dict[str, Any], term: str, which: str = '') -> list[tuple[str, str]]:
    """Student and teacher of the pairs with an outcome; of all without one."""
    return [
        (student, teacher)
        for student, row in rows.items()
        for teacher, found in row.items()
        if which in ('', found[term]['outcome'])
    ]


def _table(rows: dict[str, Any]) -> str:
    lines = [[name, *(_cell(row, term) for term in TERMS)] for name, row in rows.items()]
    heads = ['student', *(f'{title} by' for title in TERMS.values())]
    return summary.markdown(heads, lines, texts=len(heads))


def _cell(row: dict[str, Any], term: str) -> str:
    """Who teaches a student: ``'all 21'``, or who does not."""
    others = {name: x[term]['outcome'] for name, x in row.items() if x[term]['outcome'] != OK}
    if not others:
        return f'all {len(row)}'
    if len(others) == len(row):
        return f'none: {_joined(set(others.values()))}'
    named = '; '.join(
        f'{", ".join(name for name, x in others.items() if x == outcome)} {word}'
        for outcome, word in WORDS.items()
        if outcome in others.values()
    )
    return f'{len(row) - len(others)} of {len(row)}; {named}'


def _joined(found: set[str]) -> str:
    return ', '.join(word for outcome, word in WORDS.items() if outcome in found)


def _reasons(rows: dict[str, Any]) -> str:
    said: dict[str, list[str]] = {}
    for term, title in TERMS.items():
        for student, row in rows.items():
            for found in row.values():
                if 'why' in found[term]:
                    reason = f'{title} {found[term]["outcome"]}: {short_reason(found[term]["why"])}'
                    said.setdefault(reason, []).append(student)
    lines = [f'- {_names(names)}: {reason}' for reason, names in said.items()]
    return 'What was said, by student:\n\n' + '\n'.join(lines) if lines else ''


def _names(names: Sequence[str]) -> str:
    return ', '.join(dict.fromkeys(names))
