"""The charts of the demo's report, drawn by matplotlib and returned as HTML images."""

from __future__ import annotations

import base64
import html
import io
import statistics

ROLES = {'teacher': 'Teacher', 'student': 'Student alone', 'distilled': 'Student distilled'}
COLORS = {'teacher': '#64748b', 'student': '#e07a1f', 'distilled': '#2563eb'}


def runs_of(results: dict, role: str) -> list[dict]:
    """The runs of one role."""
    return [run for run in results['runs'] if run['role'] == role]


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


def _label(role: str, seen: set) -> str | None:
    if role in seen:  # one entry of the legend for all seeds
        return None
    seen.add(role)
    return ROLES[role]


def ap_chart(results: dict) -> str:
    """AP over epochs of every run."""
    figure = _figure(7, 3.2)
    axes, seen = figure.subplots(), set[str]()
    for run in results['runs']:
        if run['val']:
            epochs, values = zip(*run['val'])
            axes.plot(epochs, values, 'o-', markersize=4, linewidth=1.8, alpha=0.9,
                      color=COLORS[run['role']], label=_label(run['role'], seen))  # fmt: skip
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
                          label=_label(run['role'], seen))  # fmt: skip
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
