"""The doctor's report on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..diagnosis.findings import SEVERITIES, Finding, Report

_COLOURS = dict(error='red', warning='yellow', note='cyan')
_ANSWERS = {'helps': 'green', 'does not help': 'red', 'cannot tell': 'yellow'}


class Bar:
    """A progress bar on the terminal; calling it tells how far an examination is."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done)


def show(console: Console, report: Report) -> None:
    """Prints findings, terms, metrics, cost and verdict."""
    if report.findings:
        _show_findings(console, report.findings)
    else:
        console.print('No findings.', style='green')
    if report.terms:
        _show_terms(console, report)
    _show_metrics(console, report)
    _show_cost(console, report)
    console.print(Text(f'Verdict: {report.answer}', style=f'bold {_ANSWERS[report.answer]}'))
    for reason in report.because:
        console.print(Text(f'  {reason}'))


def _show_findings(console: Console, findings: list[Finding]) -> None:
    table = Table(title='Findings (docs/why-not.md explains the codes)', title_justify='left')
    for name in ('severity', 'code', 'where', 'evidence', 'advice'):
        table.add_column(name, overflow='fold')
    for finding in sorted(findings, key=lambda f: SEVERITIES.index(f.severity)):
        evidence = ', '.join(f'{k} {_number(v)}' for k, v in finding.evidence.items())
        severity = Text(finding.severity, style=_COLOURS[finding.severity])
        texts = (Text(text) for text in (finding.code, finding.where, evidence, finding.advice))
        table.add_row(severity, *texts)
    console.print(table)


def _show_terms(console: Console, report: Report) -> None:
    table = Table(title='Terms', title_justify='left', padding=(0, 0))
    columns = dict(
        weight='weight',
        loss='loss',
        rows='rows',
        gradient_ratio='gradient\nratio',
        cosine='cosine',
        suggested_weight='suggested\nweight',
        teacher_right='teacher\nright',
        student_right='student\nright',
    )
    table.add_column('term')
    for name in columns.values():
        table.add_column(name, justify='right')
    for name, numbers in report.terms.items():
        table.add_row(name, *(_number(getattr(numbers, key)) for key in columns))
    console.print(table)


def _show_metrics(console: Console, report: Report) -> None:
    student = report.student or {}
    if not (report.teacher or student):
        return
    table = Table(title='On labelled images', title_justify='left')
    table.add_column('metric')
    for role in ('teacher', 'student'):
        table.add_column(role, justify='right')
    for key in dict.fromkeys([*report.teacher, *student]):
        table.add_row(Text(key), _number(report.teacher.get(key)), _number(student.get(key)))
    console.print(table)


def _show_cost(console: Console, report: Report) -> None:
    cost = report.cost
    alone, both = cost.get('student_step_s'), cost.get('distilled_step_s')
    if alone and both:
        console.print(
            f'A step (forward and backward): {both:.3g} s, alone {alone:.3g} s, '
            f'teacher {_number(cost.get("teacher_s"))} s, terms {_number(cost.get("terms_s"))} s; '
            f'peak memory {_number(cost.get("peak_memory_mb"))} MB.',
            highlight=False,
        )


def _number(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(_number(item) for item in value)}]'
    if isinstance(value, dict):
        return ', '.join(f'{key} {_number(item)}' for key, item in value.items())
    return '–' if value is None else f'{value:.3g}' if isinstance(value, float) else str(value)
