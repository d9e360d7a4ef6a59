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

import base64
import html
import io
import statistics

from .page import PAGE

ROLES = {'teacher': 'Teacher', 'student': 'Student alone', 'distilled': 'Student distilled'}
COLORS = {'teacher': '#64748b', 'student': '#e07a1f', 'distilled': '#2563eb'}
HIT_IOU = 0.5


def runs_of(results: dict, role: str) -> list[dict]:
    """The runs of one role."""
    return [run for run in results['runs'] if run['role'] == role]


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


# -------------------------------------------------------------------------------------- charts


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure


def _style(axes, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=11, loc='left', color='#0f172a')
    axes.set_xlabel(xlabel, fontsize=9, color='#475569')
    axes.grid(True, color='#e2e8f0', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors='#475569', length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _image(figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', metadata={'Date': None})
    code = base64.b64encode(buffer.getvalue()).decode('ascii')
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{code}">'


def _label(role: str, run: dict, seen: set) -> str | None:
    if role in seen:  # one entry of the legend for all seeds
        return None
    seen.add(role)
    return ROLES[role]


def ap_chart(results: dict) -> str:
    """AP over epochs of every run."""
    figure = _figure(7, 3.2)
    axes, seen = figure.subplots(), set()
    for run in results['runs']:
        if run['val']:
            epochs, values = zip(*run['val'])
            axes.plot(epochs, values, 'o-', markersize=4, linewidth=1.8, alpha=0.9,
                      color=COLORS[run['role']], label=_label(run['role'], run, seen))  # fmt: skip
    _style(axes, 'AP on the validation set', 'epoch')
    if seen:
        axes.legend(frameon=False, fontsize=8)
    return _image(figure, 'AP over epochs')


def loss_chart(results: dict) -> str:
    """One panel for each loss term, over epochs."""
    keys = sorted({key for run in results['runs'] for key in run['losses']},
                  key=lambda key: (key != 'loss', key))  # fmt: skip
    if not keys:
        return '<p>No losses were logged.</p>'
    columns = 2
    rows = -(-len(keys) // columns)
    figure = _figure(7, 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, key in zip(panels, keys):
        seen: set = set()
        for run in results['runs']:
            points = run['losses'].get(key)
            if points and run['iterations']:
                steps, values = zip(*points)
                epochs = [step * results['epochs'] / run['iterations'] for step in steps]
                axes.plot(epochs, values, linewidth=1.2, alpha=0.85, color=COLORS[run['role']],
                          label=_label(run['role'], run, seen))  # fmt: skip
        _style(axes, key, 'epoch')
        if key == keys[0]:
            axes.legend(frameon=False, fontsize=7)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    return _image(figure, 'loss terms over epochs')


def class_chart(results: dict) -> str:
    """AP of each class, as bars; the mean over seeds."""
    names = list(dict.fromkeys(name for run in results['runs'] for name in run['ap_per_class']))
    if not names:
        return '<p>No AP per class was logged.</p>'
    figure = _figure(7, 3.2)
    axes = figure.subplots()
    for offset, role in enumerate(ROLES):
        means = []
        for name in names:
            values = [run['ap_per_class'].get(name) for run in runs_of(results, role)]
            values = [value for value in values if value is not None and value == value]
            means.append(statistics.fmean(values) if values else 0.0)
        axes.bar([index + (offset - 1) * 0.27 for index in range(len(names))], means, 0.25,
                 color=COLORS[role], label=ROLES[role])  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    _style(axes, 'AP by class', 'class')
    axes.legend(frameon=False, fontsize=8, ncols=3, loc='lower center', bbox_to_anchor=(0.5, 1.0))
    return _image(figure, 'AP of each class')


# ------------------------------------------------------------------------------------- gallery


def _iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def judge(found: list[dict], truth: list[dict]) -> tuple[list[bool], list[bool]]:
    """Matches detections to objects, best score first: same class and an IoU of at least 0.5.

    Returns:
        For each detection whether it is right, and for each object whether it was found.
    """
    right, hit = [False] * len(found), [False] * len(truth)
    for index in sorted(range(len(found)), key=lambda i: -found[i]['score']):
        best, best_iou = None, HIT_IOU
        for number, target in enumerate(truth):
            iou = _iou(found[index]['box'], target['box'])
            if not hit[number] and target['label'] == found[index]['label'] and iou >= best_iou:
                best, best_iou = number, iou
        if best is not None:
            right[index] = hit[best] = True
    return right, hit


def _panel(entry: dict, marks: list[tuple[list[float], str, str]], caption: str) -> str:
    width, height = entry['size']
    code = base64.b64encode(entry['jpeg']).decode('ascii')
    parts = [f'<image href="data:image/jpeg;base64,{code}" width="{width}" height="{height}"/>']
    for (x1, y1, x2, y2), text, kind in marks:
        parts.append(f'<rect class="{kind}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
                     f'height="{y2 - y1:.1f}"/>')  # fmt: skip
        if text:
            label_y = y1 - 1.5 if y1 > 9 else min(y2 + 7.5, height - 1)
            parts.append(f'<text class="{kind}" x="{x1:.1f}" y="{label_y:.1f}">{html.escape(text)}</text>')
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(caption)}">'
    return f'<figure>{svg}{"".join(parts)}</svg><figcaption>{html.escape(caption)}</figcaption></figure>'


def gallery_rows(results: dict) -> str:
    """Truth, student and distilled student side by side; right boxes green, wrong red, missed dashed."""
    names = results.get('classes') or [str(digit) for digit in range(10)]
    rows = []
    for entry in results['gallery']:
        truth = [(item['box'], names[item['label']], 'truth') for item in entry['truth']]
        panels = [_panel(entry, truth, f'Truth: {len(truth)} digits')]
        for role in ('student', 'distilled'):
            right, hit = judge(entry[role], entry['truth'])
            marks = [(item['box'], '', 'missed')
                     for item, found in zip(entry['truth'], hit) if not found]  # fmt: skip
            marks += [(item['box'], f'{names[item["label"]]} {item["score"]:.2f}', 'right' if good else 'wrong')
                      for item, good in zip(entry[role], right)]  # fmt: skip
            caption = f'{ROLES[role]}: {sum(hit)} of {len(hit)} found, {right.count(False)} wrong'
            panels.append(_panel(entry, marks, caption))
        rows.append(f'<div class="trio">{"".join(panels)}</div>')
    return ''.join(rows)


# ---------------------------------------------------------------------------------------- page


def _table_html(rows: list[list[str]]) -> str:
    header, *body = [[html.escape(cell) for cell in row] for row in rows]
    head = ''.join(f'<th>{cell}</th>' for cell in header)
    lines = [
        f'<tr><th>{row[0]}</th>' + ''.join(f'<td>{cell}</td>' for cell in row[1:]) + '</tr>'
        for row in body
    ]
    return f'<table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _facts(results: dict) -> str:
    facts = {
        'Command': results['command'],
        'Seeds': ', '.join(map(str, results['seeds'])),
        'Epochs': str(results['epochs']),
        'Date': results['date'],
        **{key.capitalize(): str(value) for key, value in results['machine'].items()},
        **{f'Config of {role}': path for role, path in results['configs'].items()},
    }
    items = [f'<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>' for key, value in facts.items()]
    return f'<dl>{"".join(items)}</dl>'


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
        'NOTE': f'GFLOPs: multiply-accumulates of one {size}×{size} image, as MMEngine counts them. '
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
