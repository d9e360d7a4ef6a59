"""``mmkd demo`` and ``tools/demo.py``: what distillation gains on handwritten digits."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..diagnosis.compare.comparison import Comparison, compare_runs
from ..diagnosis.compare.curves import read_lines
from ..diagnosis.compare.work_dirs import find_run
from ..files import whole_file
from .compare import show
from .demo_runs import DemoError, DemoRun
from .running import new_parser
from .runs import hold, machine

DESCRIPTION = """\
Train a teacher, a student and the same student distilled, and show what distillation gained.

    {command}              # or, in a checkout: make demo
    {command} --seeds 3    # repeats student and distilled student, mean and spread

Interrupted, it resumes when started again; finished runs are reused while their settings hold.
Results: a table here, and report.html in the work dir.
"""
SIDES = dict(student='Student alone', distilled='Student distilled', teacher='Teacher')
METRIC = 'coco/bbox_mAP'
TEACHER = 'mmkd_plugin::demo/gfl_r18_digits.py'
STUDENT = 'mmkd_plugin::demo/gfl_r18-quarter_digits.py'
DISTILLED = 'mmkd_plugin::demo/gdd_gfl-r18_gfl-r18-quarter_digits.py'
EPOCHS = 8
COST = dict(teacher=1.0, student=0.3, distilled=0.6)  # of an iteration, for the time left


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = new_parser(DESCRIPTION, 'demo.py', prog)
    parser.add_argument(
        '--seeds',
        type=int,
        default=1,
        metavar='N',
        help='repeat student and distilled student with seeds 0..N-1 (default 1)',
    )
    parser.add_argument('--work-dir', default='work_dirs/demo', help='default: %(default)s')
    parser.add_argument(
        '--retrain-teacher',
        action='store_true',
        help='train the teacher anew even if a trained one is there',
    )
    parser.add_argument('--fresh', action='store_true', help='train everything anew')
    parser.add_argument('--epochs', type=int, default=EPOCHS, help='default: %(default)s')
    parser.add_argument('--data-root', help='folder of the digits set (default: as in the configs)')
    parser.add_argument('--train-images', type=int, help='size of the training set (default 800)')
    parser.add_argument('--val-images', type=int, help='size of the validation set (default 200)')
    parser.add_argument('--pictures', type=int, default=8, help='images in the report (default 8)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='passed to every training run')  # fmt: skip
    args = parser.parse_args(argv)
    for name, least in (('seeds', 1), ('epochs', 1), ('pictures', 0)):
        if getattr(args, name) < least:
            parser.error(f'--{name} is {getattr(args, name)}; expected at least {least}.')
    return args


def common_options(args: argparse.Namespace) -> list[str]:
    """--cfg-options of every run: what the user asked for on this command line."""
    options = []
    if args.epochs != EPOCHS:
        options += [f'train_cfg.max_epochs={args.epochs}',
                    f'param_scheduler.1.T_max={args.epochs}',
                    f'param_scheduler.1.end={args.epochs}']  # fmt: skip
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    if args.data_root:
        options += [f'{loader}.dataset.data_root={args.data_root}' for loader in loaders]
        for evaluator in ('val_evaluator', 'test_evaluator'):
            options.append(f'{evaluator}.ann_file={args.data_root}/annotations/val.json')
    for key, count in (('train', args.train_images), ('val', args.val_images)):
        if count:
            options += [f'{loader}.dataset.digits.{key}={count}' for loader in loaders]
    return options + args.cfg_options


def plan_runs(args: argparse.Namespace) -> list[DemoRun]:
    """The runs in the order in which they are trained."""
    work_dir, options = Path(args.work_dir), common_options(args)
    teacher = DemoRun('teacher', 0, TEACHER, work_dir / 'teacher', args.epochs, options)
    runs = [teacher]
    for seed in range(args.seeds):
        own = [*options, f'randomness.seed={seed}']
        runs.append(DemoRun('student', seed, STUDENT, work_dir / f'student_seed{seed}',
                            args.epochs, own))  # fmt: skip
        runs.append(DemoRun('distilled', seed, DISTILLED, work_dir / f'distilled_seed{seed}',
                            args.epochs, own, teacher=teacher))  # fmt: skip
    return runs


def compared(runs: list[DemoRun]) -> Comparison:
    """The distilled students beside the students alone; the teacher is shown with them."""
    sides = {
        role: (name, [find_run(run.folder) for run in runs if run.role == role])
        for role, name in SIDES.items()
    }
    return compare_runs(
        sides['student'], sides['distilled'], dict([sides['teacher']]), metric=METRIC
    )


def share_of_the_way(comparison: Comparison) -> str:
    """How far the gain leads from the student to the teacher, in a sentence."""
    alone, teacher = (
        statistics.fmean(one.value for one in comparison.groups[SIDES[role]])
        for role in ('student', 'teacher')
    )
    gain = comparison.gain['mean']
    told = 'Runs differ by chance, so repeat it: make demo SEEDS=3. '
    told = told if len(comparison.pairs) == 1 else ''
    if gain <= 0:
        return f'{told}Distillation did not help.'
    if teacher <= alone:
        return f'{told}The teacher itself was no better than the student alone.'
    return f'{told}That is {gain / (teacher - alone):.0%} of the way from student to teacher.'


def facts(args: argparse.Namespace, runs: list[DemoRun], command: str) -> dict[str, str]:
    """How the numbers were made."""
    configs = {f'Config of {run.role}': run.config for run in reversed(runs)}
    about = {'cpu': 'Processor'}  # keys that say too little
    return {
        'Command': command,
        'Seeds': ', '.join(map(str, range(args.seeds))),
        'Epochs': str(args.epochs),
        'Date': time.strftime('%Y-%m-%d %H:%M:%S %Z'),
        **{about.get(key, key.capitalize()): str(value) for key, value in machine().items()},
        **configs,
    }


def prepare_data(run: DemoRun) -> None:
    """Makes the digits set here, where its progress bar is seen, before training asks for it."""
    with contextlib.redirect_stdout(io.StringIO()):  # mmdet prints what it could not import
        from ..datasets import ensure_digits

    dataset = run.resolved().train_dataloader.dataset
    digits = dataset.get('digits')
    ensure_digits(dataset.data_root, None if digits is None else digits.to_dict())


class Watch:
    """Shows the progress of one run: as a bar, or as lines where there is no terminal."""

    def __init__(self, run: DemoRun, bars: Progress, total: TaskID, console: Console) -> None:
        self.run, self.bars, self.total, self.console = run, bars, total, console
        self.iterations = run.iterations()
        self.bar = bars.add_task(run.name, total=self.iterations, state='starting')
        self.before = bars.tasks[total].completed
        self.printed = (0, time.monotonic())

    def __call__(self, line: dict) -> None:
        """Takes the newest line of the training log."""
        step = min(line['step'], self.iterations)
        state = f'epoch {line.get("epoch", "?")}/{self.run.epochs}, loss {line["loss"]:.3f}'
        self._update(step, state)
        last_step, last_time = self.printed
        if not self.console.is_terminal and step > last_step and time.monotonic() - last_time > 20:
            self.printed = (step, time.monotonic())
            left = (self.iterations - step) * line['time']
            self.console.print(f'{self.run.name}: {step}/{self.iterations} iterations, {state}, '
                               f'about {left:.0f} s left')  # fmt: skip

    def finish(self) -> None:
        last = read_lines(self.run.folder)[1][-1:]
        state = 'reused' if self.run.reused else 'trained'
        # A model that detects nothing at all gets no AP from MMDetection.
        state += ''.join(f', AP {line.get(METRIC, 0.0):.3f}' for line in last)
        self._update(self.iterations, state)
        if not self.console.is_terminal:
            self.console.print(f'{self.run.name}: {state}')

    def _update(self, step: int, state: str) -> None:
        self.bars.update(self.bar, completed=step, state=state)
        self.bars.update(self.total, completed=self.before + step * COST[self.run.role])


def train_all(runs: list[DemoRun], args: argparse.Namespace, console: Console, lock: int) -> None:
    """Trains what is not trained yet, with a bar and the time left for each run and for all."""
    columns = (TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[state]}'),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    work = sum(run.iterations() * COST[run.role] for run in runs)
    with Progress(*columns, console=console) as bars:
        total = bars.add_task('all runs', total=work, state='')
        for run in runs:
            anew = args.fresh or (args.retrain_teacher and run.role == 'teacher')
            watch = Watch(run, bars, total, console)
            run.train(lambda text: console.print(text, soft_wrap=True), watch, anew, (lock,))
            watch.finish()


def report(args: argparse.Namespace, runs: list[DemoRun], command: str, console: Console) -> None:
    """Prints the table and the verdict, and writes the report."""
    from ..report.build import build_report, facts_html, table_html

    comparison = compared(runs)
    verdict = share_of_the_way(comparison)
    show(comparison, console)
    console.print(verdict, soft_wrap=True)
    commands = [['Run', 'Command']]
    for run in runs:
        name = f'{SIDES[run.role]}, seed {run.seed}' + (' (reused)' if run.reused else '')
        commands.append([name, run.shown_command()])
    page = build_report(
        comparison,
        args.pictures,
        title='What did distillation change?',
        intro='GFL detectors trained from scratch on handwritten digits, a synthetic scene around '
        'real scans. The numbers are of this run on this machine.',
        more={
            'How it was made': facts_html(facts(args, runs, command)),
            'Commands': f'<div class="wide runs">{table_html(commands)}</div>',
        },
        verdict=verdict,
    )
    path = Path(args.work_dir) / 'report.html'
    with whole_file(path) as part:
        part.write_text(page, encoding='utf-8')
    console.print(f'Report: {path}')


def take_lock(work_dir: Path) -> int:
    """Locks the work dir; training processes inherit the lock, so it holds while one is alive.

    Raises:
        DemoError: if another demo works there.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = hold(work_dir / '.lock')
    if lock is None:
        raise DemoError(
            f'Another demo is training in {work_dir}; wait for it, end it, or give another '
            '--work-dir.'
        )
    return lock


def main(
    argv: Sequence[str] | None = None, prog: str | None = None, home: Path | None = None
) -> int:
    """Runs the demo.

    Args:
        argv: the words of the command line.
        prog: what the user has called; None for the script.
        home: the folder whose ``data`` and ``work_dirs`` the configs name; by default this one.

    Returns:
        The exit status.
    """
    args = parse_args(argv, prog)
    words = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join([*(prog or 'python tools/demo.py').split(), *words])
    if home is not None:
        os.chdir(home)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    runs = plan_runs(args)
    try:
        lock = take_lock(Path(args.work_dir))
        prepare_data(runs[0])
        train_all(runs, args, console, lock)
    except (DemoError, FileExistsError, ModuleNotFoundError) as error:
        console.print(f'error: {error}', style='red', markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print('Interrupted. The same command goes on from the last finished epoch.')
        return 130
    report(args, runs, command, console)
    return 0
