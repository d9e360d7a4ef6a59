"""The charts of a report, drawn by matplotlib for light and for dark pages, as HTML images."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..diagnosis.compare.comparison import Comparison
from .numbers import metric_curve


@dataclass(frozen=True)
class Theme:
    """Colours of one kind of page: of text, of faint text, of lines, and of the sides."""

    ink: str
    soft: str
    line: str
    sides: tuple[str, ...]


LIGHT = Theme('#0f172a', '#475569', '#e2e8f0', ('#c2410c', '#2563eb', '#64748b', '#7c3aed'))
DARK = Theme('#f1f5f9', '#a8b3c4', '#334155', ('#fb923c', '#60a5fa', '#a8b3c4', '#a78bfa'))
MOST_CLASSES = 40  # bars in one chart; of more classes those with the largest change


def _drawn(draw: Callable[[Any, Theme], None], size: tuple[float, float], alt: str) -> str:
    """The chart as a picture that has a dark version."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    codes = []
    for theme in (LIGHT, DARK):
        figure = Figure(figsize=size, layout='constrained')
        draw(figure, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
        code = base64.b64encode(buffer.getvalue()).decode('ascii')
        codes.append(f'data:image/svg+xml;base64,{code}')
    light, dark = codes
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<picture>{source}<img alt="{html.escape(alt)}" src="{light}"></picture>'


def _style(axes: Any, theme: Theme, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=11, loc='left', color=theme.ink)
    axes.set_xlabel(xlabel, fontsize=9, color=theme.soft)
    axes.grid(True, color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=theme.soft, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(axes: Any, theme: Theme) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink)


def _sides(comparison: Comparison, theme: Theme) -> dict[str, str]:
    """The colour of each side."""
    count = len(theme.sides)
    return {name: theme.sides[i % count] for i, name in enumerate(comparison.groups)}


def metric_chart(comparison: Comparison) -> str:
    """The metric over the training of every run."""
    curves = [
        (name, metric_curve(one, comparison.metric))
        for name, group in comparison.groups.items()
        for one in group
    ]
    if not any(curve for _, curve in curves):
        return f'<p class="note">The runs did not log {html.escape(comparison.metric)}.</p>'
    unit = comparison.pairs[0][0].curves['unit']

    def draw(figure: Any, theme: Theme) -> None:
        axes, seen = figure.subplots(), set()
        for name, curve in curves:
            if curve:
                places, values = zip(*curve)
                axes.plot(places, values, 'o-', markersize=4, linewidth=1.6,
                          color=_sides(comparison, theme)[name],
                          label=None if name in seen else name)  # fmt: skip
                seen.add(name)
        _style(axes, theme, f'{comparison.metric} on the validation set', unit)
        _legend(axes, theme)

    return _drawn(draw, (7, 3.2), f'{comparison.metric} over training')


def loss_chart(comparison: Comparison) -> str:
    """One panel for each loss, over training."""
    runs = [(name, one) for name, group in comparison.groups.items() for one in group]
    keys = sorted({key for _, one in runs for key in one.curves['losses']},
                  key=lambda key: (key != 'loss', key))  # fmt: skip
    if not keys:
        return '<p class="note">The runs logged no losses.</p>'
    rows = -(-len(keys) // 2)

    def draw(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(rows, 2, squeeze=False).flatten()
        for axes, key in zip(panels, keys):
            seen = set()
            for name, one in runs:
                points = one.curves['losses'].get(key)
                if points:
                    axes.plot(*zip(*points), linewidth=1.2, color=_sides(comparison, theme)[name],
                              label=None if name in seen else name)  # fmt: skip
                    seen.add(name)
            _style(axes, theme, key, runs[0][1].curves['unit'])
            if key == keys[0]:
                _legend(axes, theme)
        for axes in panels[len(keys) :]:
            axes.set_visible(False)

    return _drawn(draw, (7, 2.2 * rows), 'losses over training')


def class_chart(comparison: Comparison) -> str:
    """The gain of each class with its interval, and the metric of both sides beside it."""
    gains = comparison.class_gains
    if not gains:
        return '<p class="note">The metric has no value of single classes.</p>'
    largest = sorted(gains, key=lambda name: -abs(gains[name]['mean']))[:MOST_CLASSES]
    names = sorted(largest, key=lambda name: gains[name]['mean'])

    def draw(figure: Any, theme: Theme) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        places = range(len(names))
        colors = _sides(comparison, theme)
        for side in comparison.names:
            values = [comparison.per_class[side].get(name) for name in names]
            left.plot([float('nan') if value is None else value for value in values], places,
                      'o', markersize=5, color=colors[side], label=side)  # fmt: skip
        left.set_yticks(list(places), [name[:18] for name in names])
        _style(left, theme, f'{comparison.metric} by class', '')
        _legend(left, theme)
        means = [gains[name]['mean'] for name in names]
        reach = [[gains[name]['mean'] - gains[name]['low'] for name in names],
                 [gains[name]['high'] - gains[name]['mean'] for name in names]]  # fmt: skip
        right.axvline(0, color=theme.soft, linewidth=1)
        right.errorbar(means, list(places), xerr=reach, fmt='o', markersize=5,
                       color=colors[comparison.names[1]], ecolor=theme.soft)  # fmt: skip
        _style(right, theme, 'gain, 95 % interval', '')

    return _drawn(draw, (7, 1.2 + 0.24 * len(names)), 'the metric and its gain by class')


def place_chart(comparison: Comparison) -> str:
    """AP by size of the objects and by threshold of the IoU."""

    def draw(figure: Any, theme: Theme) -> None:
        left, right = figure.subplots(1, 2)
        _bars(left, comparison.per_size, comparison, theme)
        _style(left, theme, 'AP by size of the objects', '')
        for name, values in comparison.per_iou.items():
            heights = [float('nan') if value is None else value for value in values.values()]
            right.plot([float(key) for key in values], heights, 'o-', markersize=4,
                       color=_sides(comparison, theme)[name], label=name)  # fmt: skip
        _style(right, theme, 'AP by IoU that counts as found', 'IoU')
        _legend(right, theme)

    return _drawn(draw, (7, 2.8), 'AP by size and by IoU')


def error_chart(comparison: Comparison) -> str:
    """What each kind of error costs each side."""

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        _bars(axes, comparison.errors, comparison, theme)
        _style(axes, theme, 'AP50 that each kind of error costs, points of 100', '')
        _legend(axes, theme)

    return _drawn(draw, (7, 2.8), 'what errors cost')


def _bars(axes: Any, groups: dict[str, dict], comparison: Comparison, theme: Theme) -> None:
    """Bars of each side, side by side."""
    width = 0.8 / len(groups)
    keys: list[str] = []
    for place, (name, values) in enumerate(groups.items()):
        keys = list(values)
        heights = [value or 0.0 for value in values.values()]
        left = [i + (place - (len(groups) - 1) / 2) * width for i in range(len(keys))]
        axes.bar(left, heights, width * 0.92, color=_sides(comparison, theme)[name], label=name)
    axes.set_xticks(range(len(keys)), keys)


def reliability_chart(comparison: Comparison) -> str:
    """Accuracy over confidence of each side."""

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], '--', color=theme.soft, linewidth=1)
        for name, told in comparison.calibrations.items():
            bins = [part for part in told['bins'] if part['images']]
            axes.plot([part['confidence'] for part in bins], [part['accuracy'] for part in bins],
                      'o-', markersize=4, color=_sides(comparison, theme)[name],
                      label=f'{name}: error {told["ece"]:.3f}')  # fmt: skip
        _style(axes, theme, 'how often it is right, over how sure it is', 'confidence')
        _legend(axes, theme)

    return _drawn(draw, (7, 3.2), 'accuracy over confidence')
