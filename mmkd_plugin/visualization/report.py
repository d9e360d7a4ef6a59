"""The demo's report: one HTML file that needs nothing else, and the table and sentence in it.

Pure functions over a results dict (``tools/demo.py`` fills one from its runs)::

    command, date        str
    machine              dict of str
    seeds, epochs        list of int, int
    configs              {role: path}           roles: 'teacher', 'student', 'distilled'
    models               {role: dict(params=int, flops=float, image_size=int)}
    runs                 [dict(role, seed, reused, command, losses={key: [[iteration, value]]},
                          iterations, val=[[epoch, AP]], ap, ap50, ap75, ap_per_class={name: AP},
                          seconds)]
    gallery              [dict(jpeg=bytes, size=[w, h], truth=[dict(box, label)],
                          student=[dict(box, label, score)], distilled=[...])]
"""

from __future__ import annotations

import html
import statistics

from .charts import ROLES, ap_chart, class_chart, loss_chart, runs_of
from .gallery import gallery_rows
from .page import PAGE


def spread(values: list[float | None], digits: int = 3) -> str:
    """Formats a mean, with the sample standard deviation where there are several values."""
    known = [value for value in values if value is not None]
    if not known:
        return 'n/a'
    text = f'{statistics.fmean(known):.{digits}f}'
    if len(known) > 1:
        text += f' ± {statistics.stdev(known):.{digits}f}'
    return text


def table(results: dict) -> list[list[str]]:
    """The result table: a header and one row for each role."""
    rows = [['', 'AP', 'AP50', 'AP75', 'Parameters', 'GFLOPs', 'Training time']]
    for role, title in ROLES.items():
        runs = runs_of(results, role)
        if not runs:
            continue
        model = results['models'][role]
        rows.append(
            [
                title,
                *(spread([run[key] for run in runs]) for key in ('ap', 'ap50', 'ap75')),
                f'{model["params"] / 1e6:.2f} M',
                f'{model["flops"] / 1e9:.3f}',
                spread([run['seconds'] for run in runs], 0) + ' s',
            ]
        )
    return rows


def gains(results: dict) -> list[float]:
    """AP of the distilled student minus AP of the student alone, for each seed that has both."""
    alone = {run['seed']: run['ap'] for run in runs_of(results, 'student')}
    return [
        run['ap'] - alone[run['seed']]
        for run in runs_of(results, 'distilled')
        if run['ap'] is not None and alone.get(run['seed']) is not None
    ]


def verdict(results: dict) -> str:
    """Says in words what distillation changed; a loss or a gain within the noise is called so."""
    found = gains(results)
    if not found:
        return 'No seed has both a student and a distilled student with a result.'
    mean = statistics.fmean(found)
    if len(found) == 1:
        if mean > 0:
            told = f'Distillation raised AP by {mean:.3f}'
        elif mean < 0:
            told = f'Distillation did not help: AP fell by {-mean:.3f}'
        else:
            told = 'Distillation did not help: AP is the same'
        told += ' in this one pair of runs; runs differ by chance, so repeat it: make demo SEEDS=3.'
    else:
        deviation = statistics.stdev(found)
        better = sum(gain > 0 for gain in found)
        told = (
            f'AP with distillation minus AP without: {mean:+.3f} ± {deviation:.3f} '
            f'over {len(found)} seeds, better in {better} of {len(found)}. '
        )
        error = deviation / len(found) ** 0.5
        if mean <= 0:
            told += 'Distillation did not help.'
        elif mean > 2 * error:
            told += 'Distillation helped: the mean gain is more than twice its standard error.'
        else:
            told += 'This is no proof of a gain: the mean is within twice its standard error.'
    teacher = runs_of(results, 'teacher')
    alone = [run['ap'] for run in runs_of(results, 'student') if run['ap'] is not None]
    if teacher and teacher[0]['ap'] is not None and alone and mean > 0:
        gap = teacher[0]['ap'] - statistics.fmean(alone)
        if gap > 0:
            told += f' That is {mean / gap:.0%} of the way from student to teacher.'
        else:
            told += ' The teacher itself was no better than the student alone.'
    return told


# ---------------------------------------------------------------------------------------- page


def _table_html(rows: list[list[str]]) -> str:
    header, *body = [[html.escape(cell) for cell in row] for row in rows]
    head = ''.join(f'<th>{cell}</th>' for cell in header)
    lines = [
        f'<tr><th>{row[0]}</th>' + ''.join(f'<td>{cell}</td>' for cell in row[1:]) + '</tr>'
        for row in body
    ]
    return f'<table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


_NAMES = dict(cpu='Processor')  # of facts whose key says too little


def _facts(results: dict) -> str:
    facts = {
        'Command': results['command'],
        'Seeds': ', '.join(map(str, results['seeds'])),
        'Epochs': str(results['epochs']),
        'Date': results['date'],
        **{_NAMES.get(key, key.capitalize()): str(v) for key, v in results['machine'].items()},
        **{f'Config of {role}': path for role, path in results['configs'].items()},
    }
    pairs = ((html.escape(key), html.escape(value)) for key, value in facts.items())
    return '<dl>' + ''.join(f'<dt>{key}</dt><dd>{value}</dd>' for key, value in pairs) + '</dl>'


def _run_rows(results: dict) -> str:
    rows = [['Run', 'AP', 'Seconds', 'Command']]
    for run in results['runs']:
        name = f'{ROLES[run["role"]]}, seed {run["seed"]}' + (' (reused)' if run['reused'] else '')
        rows.append([name, spread([run['ap']]), f'{run["seconds"]:.0f}', run['command']])
    return _table_html(rows)


def build_html(results: dict) -> str:
    """Builds the report: one page with every picture inside, readable without a network."""
    size = next(iter(results['models'].values()))['image_size']
    fields = {
        'VERDICT': html.escape(verdict(results)),
        'TABLE': _table_html(table(results)),
        'NOTE': f'GFLOPs: multiply-accumulates of one {size}×{size} image, counted by MMEngine. '
        'Training time: the sum of the iterations, without start-up and validation; '
        'that of the distilled student includes the teacher’s forward passes.',
        'AP': ap_chart(results),
        'LOSSES': loss_chart(results),
        'CLASSES': class_chart(results),
        'GALLERY': gallery_rows(results),
        'FACTS': _facts(results),
        'RUNS': _run_rows(results),
    }
    page = PAGE
    for name, content in fields.items():
        page = page.replace(f'<!--{name}-->', content)
    return page
