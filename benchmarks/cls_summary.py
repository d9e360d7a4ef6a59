"""The tables of ``classification.py``: one per pair, with what may be said about each row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.cls_methods import METHODS, Benchmark
from benchmarks.methods import BASELINE, TASKS
from benchmarks.summary import markdown, number_cells, summarise

TASK = TASKS['classification']
TOLERANCE = 0.5  # points below the published result that still count as reproducing it


def tables(
    runs: Sequence[dict[str, Any]],
    teachers: dict[str, dict[str, Any]],
    pairs: dict[str, tuple[str, str]],
    methods: Sequence[str],
    benchmark: Benchmark,
) -> dict[str, dict[str, Any]]:
    """Per pair: the teacher's result, and a row per method (see ``summary.summarise``).

    Rows have in addition ``seconds`` (per epoch, mean over the seeds), ``epochs``, ``published``
    and ``verdict``.
    """
    made = {}
    for pair, (teacher, student) in pairs.items():
        own = [r for r in runs if r['pair'] == pair or _alone(r, benchmark.config(student))]
        rows = summarise(own, methods, TASK)
        for row in rows:
            found = [r for r in own if r['method'] == row['method']]
            row['epochs'] = sorted({r['epochs'] for r in found})
            if found:
                row['seconds'] = statistics.fmean(r['seconds'] / r['epochs'] for r in found)
                row['parameters'] = found[0]['parameters']
            row['published'] = benchmark.published.get(pair, {}).get(row['method'])
            taught = teachers.get(teacher, {}).get('epochs') if row['method'] != BASELINE else None
            row['verdict'] = verdict(row, benchmark.epochs, taught)
        made[pair] = dict(teacher=teacher, student=student, result=teachers.get(teacher), rows=rows)
    return made


def _alone(run: dict[str, Any], config: str) -> bool:
    return run['method'] == BASELINE and run['config'] == config


def verdict(row: dict[str, Any], epochs: int | None, teacher_epochs: int | None = None) -> str:
    """What a row may claim about its published result.

    ``'reproduced'`` takes three seeds or more, the full published schedule (the teacher's, too),
    and a best accuracy (mean over the seeds) no more than ``TOLERANCE`` below the published one.
    """
    if row['incomplete']:
        return f'incomplete: {row["incomplete"]}'
    if row['published'] is None:
        return '–'
    if row['epochs'] != [epochs]:
        trained = ', '.join(map(str, row['epochs']))
        return f'incomplete: {trained} of {epochs} epochs'
    if teacher_epochs not in (None, epochs):
        return f'incomplete: a teacher of {teacher_epochs} of {epochs} epochs'
    difference = row['best_top1'][0] - row['published']
    if difference >= -TOLERANCE:
        return 'reproduced'
    return f'not reproduced ({difference:+.2f})'


def to_markdown(made: dict[str, dict[str, Any]], benchmark: Benchmark) -> str:
    """The tables of :func:`tables`; what was published only where anything was."""
    texts = [_table(name, pair, benchmark) for name, pair in made.items()]
    if benchmark.published:
        texts.append(
            'Published: best top-1 over the epochs, with other teachers (READMEs of RepDistiller, '
            'mdistiller and, for DKD of resnet110_resnet20, LSKD); CKD, LoCa, IPWD and FunMatch '
            'have no published number for these pairs that could be checked. "reproduced": three '
            f'seeds or more, all {benchmark.epochs} epochs, and a best accuracy no more than '
            f'{TOLERANCE:g} points below the published one.'
        )
    return '\n'.join(texts) + '\n'


def _table(name: str, pair: dict[str, Any], benchmark: Benchmark) -> str:
    published = benchmark.published.get(name, {})
    heads = ['method', 'best', 'last', 'gain (last)', 'seeds better', 's/epoch']
    if benchmark.published:
        heads[3:3] = ['published', 'verdict']
    rows = []
    for row in pair['rows']:
        cells = row_cells(row)
        if benchmark.published:
            number = '–' if row['published'] is None else f'{row["published"]:.2f}'
            cells[3:3] = [number, '' if row['incomplete'] else row['verdict']]
        rows.append(cells)
    return f'### {name}\n\n{_about_teacher(pair, published)}\n\n{markdown(heads, rows)}'


def _about_teacher(pair: dict[str, Any], published: dict[str, float]) -> str:
    result, text = pair['result'], f'Teacher {pair["teacher"]}'
    if result is not None:
        text += f': best {result["best_top1"]:.2f}, last {result["top1"]:.2f}'
        text += f' ({result["parameters"]:,} parameters, {result["epochs"]} epochs)'
    if 'teacher' in published:
        text += f', published {published["teacher"]:.2f}'
    sizes = {row['parameters'] for row in pair['rows'] if 'parameters' in row}
    if len(sizes) == 1:
        text += f'. Student {pair["student"]}: {sizes.pop():,} parameters'
    return text + '.'


def row_cells(row: dict[str, Any]) -> list[str]:
    """Title, best, last, gain, wins, seconds."""
    seconds = f'{row["seconds"]:.1f}' if 'seconds' in row else ''
    numbers = number_cells(row, TASK, ('best_top1', 'top1'), digits=2)
    return [METHODS[row['method']].title, *numbers, seconds]


def selection_markdown(runs: Sequence[dict[str, Any]]) -> str:
    """Runs of ``--select-lr``: last accuracy of every network, optimizer and rate, best marked."""
    groups: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        groups.setdefault((run['method'], run['weight']), []).append(run['top1'])
    means = {key: statistics.fmean(values) for key, values in groups.items()}
    rows = []
    for (name, lr), mean in means.items():
        best = max(m for (n, _), m in means.items() if n == name)
        mark = 'highest' if mean == best else ''
        rows.append([name, f'{lr:g}', str(len(groups[name, lr])), f'{mean:.2f}', mark])
    return markdown(['network, optimizer', 'learning rate', 'seeds', 'top-1', ''], rows)
