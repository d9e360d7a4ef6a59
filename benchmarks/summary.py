"""From the results of single runs to the table: mean, spread and paired gain, or "incomplete"."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods import BASELINE, DETECTION, TASKS, TITLES, Task

MIN_SEEDS = 3
METRICS = tuple(DETECTION.metrics)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def columns(task: Task) -> tuple[str, ...]:
    """Names of a run's metrics: of its last epoch, then the best of its evaluations."""
    return (*task.metrics, *(f'best_{m}' for m in task.metrics))


def run_fields(task: Task) -> tuple[str, ...]:
    """Columns of the CSV file."""
    # The detectors' files stay as they are: a file is about one pair, which is no column.
    pair = ('pair',) if task is TASKS['classification'] else ()
    return (
        'dataset', 'split', *pair, 'method', 'weight', 'seed', 'epochs',
        *columns(task), 'seconds', 'parameters',
    )  # fmt: skip


def summarise(
    runs: Iterable[dict[str, Any]], methods: Sequence[str], task: Task = DETECTION
) -> list[dict[str, Any]]:
    """One row per method, over its seeds.

    A gain is a difference between two runs of the same seed, then averaged. A row with fewer than
    three seeds, or with a seed that has no run of the student alone, has ``incomplete`` set to the
    reason and no numbers.

    Args:
        runs: Finished runs with the fields of :func:`run_fields`.
        methods: The rows wanted, in order.
        task: What was measured; the gain is one in its first metric.

    Returns:
        Rows with ``method``, ``seeds``, ``incomplete`` and, where complete, ``<metric>`` and
        ``gain`` as (mean, standard deviation) and ``wins`` (seeds with a gain above 0).
    """
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run['method'], {})[run['seed']] = run
    baseline = by_method.get(BASELINE, {})
    rows = []
    for method in methods:
        found = by_method.get(method, {})
        seeds = sorted(found)
        unpaired = [s for s in seeds if s not in baseline]
        row: dict[str, Any] = dict(method=method, seeds=seeds, incomplete=None)
        if len(seeds) < MIN_SEEDS:
            row['incomplete'] = f'{len(seeds)} of at least {MIN_SEEDS} seeds'
        elif unpaired:
            row['incomplete'] = f'no student alone for seed {", ".join(map(str, unpaired))}'
        else:
            for metric in columns(task):
                row[metric] = spread([found[s][metric] for s in seeds])
            gains = [found[s][task.main] - baseline[s][task.main] for s in seeds]
            row['gain'] = spread(gains)
            row['wins'] = sum(g > 0 for g in gains)
            for metric in list(task.metrics)[1:]:
                row[f'gain_{metric}'] = spread(
                    [found[s][metric] - baseline[s][metric] for s in seeds]
                )
        rows.append(row)
    return rows


def points(
    pair: tuple[float, float], sign: bool = False, scale: float = 100.0, digits: int = 1
) -> str:
    """Mean and deviation in points: ``'73.12 ± 0.20'``."""
    mean, std = (scale * x for x in pair)
    return f'{mean:{"+" if sign else ""}.{digits}f} ± {std:.{digits}f}'


def listed(facts: dict[str, Any]) -> str:
    """Facts as a line of text: ``'threads 2, torch 2.1.0'``."""
    return ', '.join(f'{key} {value}' for key, value in facts.items())


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table of which the first ``texts`` columns are text, and the others numbers."""
    rule = '|---' * texts + '|---:' * (len(heads) - texts) + '|'
    head, *lines = [f'| {" | ".join(cells)} |' for cells in (heads, *rows)]
    return '\n'.join([head.replace('|  |', '| |'), rule, *lines]) + '\n'


def number_cells(
    row: dict[str, Any],
    task: Task,
    metrics: Sequence[str] | None = None,
    gains: Sequence[str] = ('gain',),
    digits: int = 1,
) -> list[str]:
    """What a row of :func:`summarise` has in a table: metrics, gains and wins, or why not.

    Args:
        row: Of :func:`summarise`.
        task: What was measured.
        metrics: Keys of the metrics; by default the task's.
        gains: Keys of the gains.
        digits: After the point.
    """
    metrics = list(task.metrics) if metrics is None else metrics
    if row['incomplete']:
        return [f'incomplete: {row["incomplete"]}', *[''] * (len(metrics) + len(gains))]
    numbers = [points(row[m], scale=task.scale, digits=digits) for m in metrics]
    if row['method'] == BASELINE:
        return numbers + ['–'] * (len(gains) + 1)
    numbers += [points(row[g], sign=True, scale=task.scale, digits=digits) for g in gains]
    return [*numbers, f'{row["wins"]}/{len(row["seeds"])}']


def to_markdown(rows: Sequence[dict[str, Any]], weights: dict[str, float] | None = None) -> str:
    """The table of ``summarise`` as Markdown, AP in points (0 to 100)."""
    weights = weights or {}
    heads = ['method', 'weight', *METRICS, 'best AP', 'gain in AP', 'seeds better']
    lines = []
    for row in rows:
        method = row['method']
        weight = f'{weights[method]:g}' if method in weights else '–'
        cells = number_cells(row, DETECTION, (*METRICS, 'best_AP'))
        lines.append([TITLES.get(method, method), weight, *cells])
    return markdown(heads, lines)


def to_task_markdown(
    rows: Sequence[dict[str, Any]],
    task: Task,
    titles: dict[str, str],
    weights: dict[str, float],
) -> str:
    """The table of ``summarise`` for any task, with the gain in the first metric.

    A task that measures masks and boxes shows the gain in boxes as well.

    Args:
        rows: Of :func:`summarise`.
        task: What was measured.
        titles: Of the methods.
        weights: Of the parts that methods are joined from.
    """
    gains = {task.main: 'gain', **({'box_AP': 'gain_box_AP'} if 'box_AP' in task.metrics else {})}
    names = [*task.metrics, *(f'gain in {name}' for name in gains), 'seeds better']
    lines = []
    for row in rows:
        method = row['method']
        used = [f'{weights[part]:g}' for part in method.split('+') if part in weights]
        cells = number_cells(row, task, gains=list(gains.values()))
        lines.append([titles.get(method, method), ' + '.join(used) or '–', *cells])
    return markdown([name.replace('_', ' ') for name in ['method', 'weight', *names]], lines)


def to_selection_markdown(
    runs: Sequence[dict[str, Any]], task: Task = DETECTION, titles: dict[str, str] | None = None
) -> str:
    """Runs of ``--select-weights`` as a table, the best weight of each method marked."""
    titles = {**TITLES, **(titles or {})}
    best: dict[str, float] = {}
    for run in runs:
        best[run['method']] = max(best.get(run['method'], 0.0), run[task.main])
    heads = ['method', 'weight', 'seed', *(name.replace('_', ' ') for name in task.metrics), '']
    lines = []
    for run in runs:
        method = run['method']
        mark = 'highest' if run[task.main] == best[method] and method != BASELINE else ''
        numbers = [f'{task.scale * run[m]:.1f}' for m in task.metrics]
        weight = '–' if run['weight'] is None else f'{run["weight"]:g}'
        lines.append([titles[method], weight, str(run['seed']), *numbers, mark])
    return markdown(heads, lines)


def write_csv(path: Path, runs: Sequence[dict[str, Any]], task: Task = DETECTION) -> None:
    """Every single run, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, run_fields(task), extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(runs)
