"""The table of docs/coverage.md, from the file of results of ``sweep.py``."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from benchmarks import summary

RECIPES = ('gdd', 'kd', 'gdd+kd')
TEACHERS = dict(own='own kind', foreign='foreign')
WORDS = dict(ok='yes', refused='refused', crashed='**crashed**')


def text(content: dict[str, Any]) -> str:
    """Counts, a row for each config, and what the refusals and crashes said."""
    judged = {name: row for name, row in content['rows'].items() if 'not_judged' not in row}
    others = {name: row for name, row in content['rows'].items() if 'not_judged' in row}
    versions = ', '.join(f'{name} {version}' for name, version in content['versions'].items())
    parts = [
        f'{len(judged)} configs were judged, {len(others)} could not be ({versions}).'
        + _rest(content),
        _counts(judged),
        _table(judged),
        _reasons(judged),
    ]
    if others:
        lines = [f'- `{name}`: {short_reason(row["not_judged"])}' for name, row in others.items()]
        parts.append(
            'Not judged, since the student alone does not train here:\n\n' + '\n'.join(lines)
        )
    return '\n\n'.join(filter(None, parts))


def _rest(content: dict[str, Any]) -> str:
    rest = len(set(content['configs']) - set(content['rows']))
    return f' {rest} of {len(content["configs"])} wait for their turn.' if rest else ''


def _counts(judged: dict[str, Any]) -> str:
    heads, lines = ['teacher', 'recipe', 'yes', 'refused', 'crashed'], []
    for teacher, title in TEACHERS.items():
        for recipe in RECIPES:
            found = Counter(_outcome(row, teacher, recipe) for row in judged.values())
            if found.keys() != {''}:
                lines.append([title, recipe, *(str(found[word]) for word in WORDS)])
    return summary.markdown(heads, lines, texts=2)


def _table(judged: dict[str, Any]) -> str:
    heads = ['config', 'detector: heads']
    columns = [
        (teacher, recipe)
        for teacher in TEACHERS
        for recipe in RECIPES
        if any(_outcome(row, teacher, recipe) for row in judged.values())
    ]
    heads += [f'{recipe}, {TEACHERS[teacher]}' for teacher, recipe in columns]
    lines = []
    for name, row in judged.items():
        cells = [WORDS.get(_outcome(row, *column), '–') for column in columns]
        lines.append([f'`{name.removesuffix(".py")}`', row['pair'], *cells])
    return summary.markdown(heads, lines, texts=len(heads))


def _outcome(row: dict[str, Any], teacher: str, recipe: str) -> str:
    """Empty where it was not tried."""
    return row.get(teacher, {}).get(recipe, {}).get('outcome', '')


def _reasons(judged: dict[str, Any]) -> str:
    """What was said with a teacher of the own kind."""
    said: dict[str, list[str]] = {}
    for name, row in judged.items():
        for outcome in row['own'].values():
            if outcome['outcome'] != 'ok':
                key = f'{outcome["outcome"]}: {short_reason(outcome["why"])}'
                said.setdefault(key, []).append(name.split('/')[0])
    lines = [
        f'- {", ".join(dict.fromkeys(folders))} {reason}'
        for reason, folders in sorted(said.items())
    ]
    return 'What was said, with a teacher of the own kind:\n\n' + '\n'.join(lines) if lines else ''


def short_reason(why: str) -> str:
    """The first sentence of a message, without the name of the error and where it was raised."""
    plain = re.sub(r'^\w+: ', '', re.sub(r' \([\w.]+:\d+\)$', '', why))
    plain = re.sub(r"terms\[0\] \('by'\)\.(student|teacher): ", '', plain)
    plain = re.sub(r"recipe '[\w+-]+': (student|teacher): ", '', plain)
    return re.split(r'(?<=[a-z)\'])\. ', plain)[0].rstrip('.')[:300].replace('|', '/') + '.'
