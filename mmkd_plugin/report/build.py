"""The report of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from ..diagnosis.compare.comparison import Comparison
from .charts import (
    class_chart,
    error_chart,
    loss_chart,
    metric_chart,
    place_chart,
    reliability_chart,
)
from .gallery import gallery
from .numbers import gain_sentence, run_rows, summary_rows
from .page import PAGE

_TIMES = (
    'GFLOPs: multiply-accumulates of one image as the network gets it, counted by MMEngine. Time '
    'an image: the median over batches, measured while predicting. Training: the sum of the '
    'iterations, without start-up and validation; that of a distilled run includes the teacher’s '
    'forward passes.'
)
_PICTURES = {
    'detection': 'Behind the name of an image stands the F1 score of both runs on it. Detections '
    'with a score above 0.3. Green: right class and an IoU of at least 0.5. Red: wrong. Dashed '
    'yellow: an object that was missed. Hovering over a box tells class and score.',
    'segmentation': 'Behind the name of an image stands the mean IoU of both runs on it.',
    'classification': 'Behind the name of an image stands the probability of its true class.',
    'other': '',
}


def build_report(
    comparison: Comparison,
    pictures: int = 12,
    title: str = '',
    intro: str = '',
    more: Mapping[str, str] | None = None,
    verdict: str = '',
) -> str:
    """Builds the report, with every picture inside, readable without a network.

    Args:
        comparison: what it is about.
        pictures: the number of images at most.
        title: of the page; by default the names of the two sides.
        intro: a sentence below the title.
        more: further sections, the HTML of each by its heading.
        verdict: sentences after those about the gain.
    """
    base, run = comparison.names
    sections = [
        _section('', f'<p>{html.escape(gain_sentence(comparison))} {html.escape(verdict)}</p>'
                 + _notes(comparison), 'verdict'),
        _section('Results', f'<div class="wide">{table_html(summary_rows(comparison))}</div>'
                 f'<p class="note">{_TIMES}</p>'),
        _section('Where the gain is', _places(comparison)),
        _section('Training curves', metric_chart(comparison) + loss_chart(comparison)),
        _section('Where the runs differ most', _gallery(comparison, pictures)),
        *(_section(heading, content) for heading, content in (more or {}).items()),
        _section('Runs', f'<div class="wide runs">{table_html(run_rows(comparison))}</div>'),
    ]  # fmt: skip
    fields = {
        'TITLE': html.escape(title or f'{run} against {base}'),
        'INTRO': html.escape(intro),
        'SECTIONS': '\n'.join(sections),
    }
    page = PAGE
    for name, content in fields.items():
        page = page.replace(f'<!--{name}-->', content)
    return page


def _section(heading: str, content: str, kind: str = '') -> str:
    title = f'<h2>{html.escape(heading)}</h2>' if heading else ''
    return f'<section class="{kind}">{title}{content}</section>'


def _notes(comparison: Comparison) -> str:
    return ''.join(f'<p class="note">{html.escape(note)}</p>' for note in comparison.notes)


def _places(comparison: Comparison) -> str:
    parts = [class_chart(comparison)]
    if comparison.per_size:
        parts += [place_chart(comparison), error_chart(comparison)]
    if comparison.calibrations:
        parts.append(reliability_chart(comparison))
        parts.append(
            '<p class="note">Error: the expected calibration error, over 15 bins of equal width. '
            'Above the dashed line a run is more often right than it says.</p>'
        )
    return ''.join(parts)


def _gallery(comparison: Comparison, pictures: int) -> str:
    about = _PICTURES[comparison.pairs[0][0].found.task]
    first = ' '.join(str(one.run.folder) for one in comparison.pairs[0])
    note = f'<p class="note">{about} Of the first pair of runs ({html.escape(first)}).</p>'
    return note + gallery(comparison, pictures)


def table_html(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its header."""
    header, *body = [[html.escape(cell) for cell in row] for row in rows]
    head = ''.join(f'<th>{cell}</th>' for cell in header)
    lines = [
        f'<tr><th>{row[0]}</th>' + ''.join(f'<td>{cell}</td>' for cell in row[1:]) + '</tr>'
        for row in body
    ]
    return f'<table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def facts_html(facts: Mapping[str, str]) -> str:
    """Names and values, one below the other."""
    pairs = ((html.escape(key), html.escape(value)) for key, value in facts.items())
    return '<dl>' + ''.join(f'<dt>{key}</dt><dd>{value}</dd>' for key, value in pairs) + '</dl>'
