"""``mmkd compare`` and ``tools/compare.py``: finished runs side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..checks import shortened
from ..diagnosis.compare.comparison import Comparison, compare_runs
from ..diagnosis.compare.work_dirs import FinishedRun, find_run
from ..files import whole_file
from ..report.numbers import gain_sentence, summary_rows
from .errors import UsageError, one_line_errors
from .running import add_debug_argument, new_parser

DESCRIPTION = """\
Compare finished runs: is the gain real, and where does it come from?

    {command} BASE_DIR... --with RUN_DIR... [--names alone distilled] [--out report.html]

Work dirs may be of any run of MMEngine. Runs of the same seed are paired. Every run predicts its
validation set once; the predictions are kept in its work dir.
"""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = new_parser(DESCRIPTION, 'compare.py', prog)
    add = parser.add_argument
    add('base', nargs='+', metavar='BASE_DIR', help='work dirs to compare with')
    add(
        '--with',
        dest='run',
        nargs='+',
        metavar='RUN_DIR',
        required=True,
        help='work dirs whose gain is asked for',
    )
    add(
        '--names',
        nargs=2,
        default=['base', 'run'],
        metavar=('BASE', 'RUN'),
        help='what the two sides are called (default: base run)',
    )
    add('--metric', help='a metric that the evaluator of the configs gives')
    add('--best', action='store_true', help='compare the checkpoints that validated best')
    add('--unfinished', action='store_true', help='take runs that were interrupted')
    add('--out', metavar='FILE', help='write a report, one HTML file')
    add('--json', metavar='FILE', help='write the numbers')
    add('--pictures', type=int, default=12, metavar='N', help='images in the report (default 12)')
    add(
        '--trust-checkpoint',
        action='store_true',
        help='let checkpoints hold pickled objects, which can run code; only for files you trust',
    )
    add_debug_argument(parser)
    args = parser.parse_args(argv)
    if args.pictures < 0:
        parser.error(f'--pictures is {args.pictures}; expected 0 or more.')
    if args.names[0] == args.names[1]:
        parser.error(f'--names are both {args.names[0]!r}; give two names.')
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Compares what the command line says; ``prog`` is what the user has called."""
    args = parse_args(argv, prog)
    with one_line_errors(args.debug):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Compares what the command line says."""
    for flag in ('out', 'json'):
        _check_writable(flag, getattr(args, flag))
    for folders in (args.base, args.run):
        _check_once(folders)
    # Packages print while they are imported; standard output is for the table alone.
    with contextlib.redirect_stdout(sys.stderr):
        sides = [
            (name, [find_run(folder, args.best, args.unfinished, args.trust_checkpoint)
                    for folder in folders])
            for name, folders in zip(args.names, (args.base, args.run))
        ]  # fmt: skip
        comparison = compared_with_progress(sides, args.metric)
    show(comparison, Console())
    if args.json:
        text = json.dumps(comparison.as_json(), indent=1, allow_nan=False)
        with whole_file(Path(args.json)) as part:
            part.write_text(text + '\n', encoding='utf-8')
    if args.out:
        write_report(comparison, Path(args.out), args.pictures)
        print(f'Report: {args.out}')


def _check_writable(flag: str, name: str | None) -> None:
    if name is not None and not Path(name).resolve().parent.is_dir():
        raise UsageError(
            f'--{flag} {shortened(name)}: there is no folder {Path(name).parent}; make it first, '
            'or name another one.'
        )


def _check_once(folders: Sequence[str]) -> None:
    """A run that counts twice would make the interval of one side too narrow."""
    seen: dict[Path, str] = {}
    for folder in folders:
        first = seen.setdefault(Path(folder).resolve(), folder)
        if first is not folder:
            raise UsageError(
                f'{shortened(first)} and {shortened(folder)} are one work dir. Name each run of a '
                'side once; several are runs with different seeds.'
            )


def compared_with_progress(
    sides: Sequence[tuple[str, list[FinishedRun]]], metric: str | None
) -> Comparison:
    """Compares with a progress bar for each run that has to predict."""
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, object] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(f'predict {name}', total=total)
            bars.update(tasks[name], completed=done)  # type: ignore[arg-type]  # a TaskID

        base, run, *others = sides
        return compare_runs(base, run, dict(others), metric, tell=tell)


def show(comparison: Comparison, console: Console) -> None:
    """Prints the table and what it says."""
    header, *rows = summary_rows(comparison)
    table = Table(title=f'{comparison.metric} on {comparison.pairs[0][0].found.images} images')
    for index, name in enumerate(header):
        table.add_column(name, justify='left' if index == 0 else 'right')
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(gain_sentence(comparison), soft_wrap=True)
    for note in comparison.notes:
        console.print(f'Note: {note}', soft_wrap=True, markup=False)


def write_report(comparison: Comparison, path: Path, pictures: int) -> None:
    """Writes the report of a comparison."""
    from ..report.build import build_report

    with whole_file(path) as part:
        part.write_text(build_report(comparison, pictures), encoding='utf-8')
