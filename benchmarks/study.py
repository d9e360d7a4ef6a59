"""What every study of many runs does: teachers first, then what is missing, then the tables."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import summary
from benchmarks.methods import BASELINE, Task
from benchmarks.pool import Pool, headline, label, prepare_run, read_results
from mmkd_plugin.cli.running import new_parser
from mmkd_plugin.cli.runs import machine, write_json

Plan = dict[Path, dict[str, Any]]  # the settings of each run, by its folder


class Study:
    """The runs of one data set under one work directory.

    Args:
        args: Of the command line, see :func:`make_parser`.
        pool: What trains them.
    """

    script: str  # as a user types it
    task: Task

    def __init__(self, args: argparse.Namespace, pool: Pool) -> None:
        self.args = args
        self.pool = pool

    def train_teachers(self) -> tuple[Any, Any]:
        """Trains the teachers that are missing; returns their results, and how runs name them."""
        raise NotImplementedError

    def plan(self, teachers: Any) -> Plan:
        """Folder and settings of every run."""
        raise NotImplementedError

    def write(self, runs: list[dict[str, Any]], teachers: Any) -> None:
        """Writes the tables of what is finished."""
        raise NotImplementedError

    def distils(self) -> bool:
        """Whether any run wants a teacher."""
        return set(self.args.methods) != {BASELINE}

    def run(self) -> int:
        """Trains what is missing and writes the tables; returns the number of failed runs."""
        results = named = None
        if self.args.teacher_only or self.distils():
            results, named = self.train_teachers()
        if self.args.teacher_only:
            return 0
        plan = self.plan(named)
        failed: list[Path] = []
        if not self.args.report_only:
            todo = missing(plan)
            print(f'{len(plan)} runs, {len(plan) - len(todo)} of them finished before.', flush=True)
            failed = self.pool.run(todo)
        runs = [result for folder in plan if (result := read_results(folder)) is not None]
        self.write(runs, results)
        return len(failed)

    def teach(
        self, pool: Pool, teachers: dict[str, tuple[Path, dict[str, Any]]]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
        """Trains the teachers that are missing.

        Args:
            pool: What trains them.
            teachers: Folder and settings by name.

        Returns:
            Their results, and how the settings of a run name them, by name.
        """
        pool.run(missing(dict(teachers.values())))
        results, named = {}, {}
        for name, (folder, run) in teachers.items():
            result = read_results(folder)
            if result is None:
                raise SystemExit(f'{label(folder)} could not be trained; see {folder / "log.txt"}.')
            file = folder / result['checkpoint']
            if self.args.teacher_only:
                print(f'Teacher {label(folder)}: {headline(result)} ({file})')
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            results[name] = result
            named[name] = dict(config=run['config'], checkpoint=str(file), sha256=sha256)
        return results, named

    @property
    def command(self) -> str:
        """What a user types for the same tables."""
        argv = [a for a in self.args.argv if a != '--report-only']  # it changes no number
        return shlex.join(['python', self.script, *argv])

    @property
    def seeds(self) -> str:
        return ', '.join(map(str, self.args.seeds))

    def save(
        self,
        name: str,
        lines: list[str],
        table: str,
        runs: list[dict[str, Any]],
        front: Iterable[dict[str, Any]] = (),
        **content: Any,
    ) -> None:
        """The three files of a study: single runs, the table, all of it; prints the table.

        Args:
            name: Of the files.
            lines: What is said about the table; command and machine are added.
            table: As Markdown.
            runs: Results of the finished runs.
            front: Further lines of the CSV file, before those of the runs.
            content: Of the JSON file, beside runs, command and machine.
        """
        about = dict(machine(), date=datetime.now(timezone.utc).strftime('%Y-%m-%d'))
        made = [f'Command: `{self.command}`', f'Machine: {summary.listed(about)}']
        text = '\n\n'.join([*lines, *made, table])
        out = self.args.results
        summary.write_csv(out / f'{name}.csv', [*front, *runs], self.task)
        (out / f'{name}.md').write_text(text)
        # What every evaluation gave stays in the work directory.
        short = [{k: v for k, v in run.items() if k != 'history'} for run in runs]
        everything = dict(command=self.command, machine=about, **content, runs=short)
        write_json(out / f'{name}.json', everything)
        print('\n' + text)


def missing(plan: Plan) -> list[Path]:
    """The runs that are not finished, prepared for their workers."""
    return [folder for folder, run in plan.items() if prepare_run(folder, run) is None]


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} must be 1 or more')
    return value


def make_parser(description: str | None, jobs: int, work_dir: str) -> argparse.ArgumentParser:
    """A parser with what every study may be told."""
    parser = new_parser(description)
    add = parser.add_argument
    add('--seeds', nargs='+', type=int, default=[0, 1, 2])
    add('--jobs', type=positive, default=jobs, help='runs at a time (default %(default)s)')
    add('--threads', type=positive, default=1, help='CPU threads of each run (default 1)')
    add('--epochs', type=positive, help="of the students; default: the pair's or the config's")
    add('--teacher-epochs', type=positive, help="default: the pair's or the config's")
    add('--teacher-only', action='store_true', help='train the teachers and stop')
    add('--report-only', action='store_true', help='tables of what is finished; no student trains')
    add('--work-dir', type=Path, default=Path(work_dir))
    add('--results', type=Path, default=Path('benchmarks/results'), help='where the tables go')
    return parser


def parse_grid(
    option: str, form: str, texts: list[str] | None, known: Iterable[str]
) -> list[tuple[str, list[float]]]:
    """``['cwd=5,20']`` to ``[('cwd', [5.0, 20.0])]``.

    Args:
        option: What the texts were given with.
        form: How they are written, such as ``'METHOD=W1,W2'``.
        texts: Of the command line.
        known: The names that may stand in front.
    """
    grid = []
    for text in texts or []:
        name, _, values = text.partition('=')
        try:
            numbers = [float(v) for v in values.split(',')]
        except ValueError:
            numbers = []
        if name not in known or not numbers:
            raise SystemExit(
                f'{option} {text!r}: expected {form},... with {form.split("=")[0]} one of '
                f'{", ".join(known)}.'
            )
        grid.append((name, numbers))
    return grid
