#!/usr/bin/env python
"""What distillation gains: one student trained alone and with each method, several seeds each.

    python benchmarks/detection.py --dataset bccd --seeds 0 1 2 --jobs 2
    python benchmarks/detection.py --dataset bccd --seeds 0 --select-weights cwd=5,20 mgd=1,5
    python benchmarks/detection.py --dataset digits --pair faster --methods student kd ckd+kd

Without ``--pair`` the losses on features are compared, on GFL. A pair is one kind of head (gfl,
fcos, faster, mask, pspnet, detr) or two (faster-gfl); its methods may be joined by '+'.

The teacher is trained first, once. Every run is a process of its own that can be killed: started
again, the command reuses finished runs and goes on with the others from their last checkpoints.
Loss weights are chosen with ``--select-weights``, on data that the reported table never sees.
Tables go to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import summary  # noqa: E402
from benchmarks.head_methods import PAIRS, Pair, title  # noqa: E402
from benchmarks.methods import (  # noqa: E402
    BASELINE,
    BENCHMARKS,
    DETECTION,
    LOSSES,
    METHODS,
    build_terms,
)
from benchmarks.pool import Pool, headline, machine, prepare_run, read_results  # noqa: E402


def prepare_data(dataset: str, select: bool, pair: Pair | None = None) -> dict[str, Any]:
    """Makes the data ready and returns the config options that point to it.

    Weights are chosen on the digits set of seed 1: without a pair on all of it, teacher included;
    for a pair on its val images only, which saves another teacher.
    """
    if dataset == 'bccd':
        sys.path.insert(0, str(ROOT / 'tools'))
        from prepare_bccd import prepare

        os.environ['BCCD_ROOT'] = str(prepare())  # read by the configs, inherited by the workers
        return {}
    if not select:
        return {}  # the digits data set makes its files on first use
    root = 'data/digits-seed1'
    options: dict[str, Any] = {}
    for split in ('val', 'test') if pair else ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = root
        options[f'{split}_dataloader.dataset.digits.seed'] = 1
        # The metric of semantic maps has no file of its own.
        if split != 'train' and not (pair and pair.task == 'semantic'):
            options[f'{split}_evaluator.ann_file'] = f'{root}/annotations/val.json'
    return options


class Study:
    """The runs of one data set, or of one pair on it, under one work directory."""

    pairs = PAIRS

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.select = bool(args.select_weights)
        self.pair: Pair | None = self.pairs[args.dataset][args.pair] if args.pair else None
        self.benchmark = self.pair or BENCHMARKS[args.dataset]
        self.task = self.pair.measured if self.pair else DETECTION
        self.options = prepare_data(args.dataset, self.select, self.pair)

    def folder(self, pair: str | None) -> Path:
        """Where the runs of a pair are; GFL's are shared with the comparison without a pair."""
        base = self.args.work_dir / self.args.dataset
        return base if pair in (None, 'gfl') else base / pair

    def epochs(self, teacher: bool = False) -> int | None:
        """Length of a run: the command line's, else the pair's; None is the config's."""
        asked = self.args.teacher_epochs if teacher else self.args.epochs
        return asked or (self.pair.epochs[teacher] if self.pair else None)

    def spec(self, method: str, seed: int, weight: float | None, **changes: Any) -> dict[str, Any]:
        """What ``run.json`` says: everything a result depends on."""
        terms = (
            self.pair.terms(method, weight, self.args.epochs)
            if self.pair
            else build_terms(method, weight)
        )
        run = dict(
            dataset=self.args.dataset,
            config=self.benchmark.student,
            method=method,
            weight=weight,
            terms=terms,
            seed=seed,
            split='val' if self.select else self.benchmark.split,
            epochs=self.epochs(),
            options=self.options,
            teacher=None,
        )
        if self.pair and self.pair.task != 'detection':
            run['task'] = self.pair.task
        return {**run, **changes}

    def train_teacher(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Trains the teacher unless that is done; returns its results, and how runs name it."""
        # Other training images have a teacher of their own.
        own = self.select and self.args.dataset == 'digits' and not self.pair
        of = self.pair.teacher_of if self.pair else None
        folder = self.folder(of or self.args.pair) / ('teacher-select' if own else 'teacher')
        config = self.benchmark.teacher
        changes = dict(config=config, split=self.benchmark.split, epochs=self.epochs(teacher=True))
        run = {**self.spec(BASELINE, 0, None, **changes), 'method': 'teacher'}
        if self.pair:
            run['options'] = {}  # the same teacher whatever the students are measured on
        result = prepare_run(folder, run)
        if result is None:
            Pool(1, self.args.threads * self.args.jobs).run([folder])
            result = read_results(folder)
        if result is None:
            raise SystemExit(f'The teacher could not be trained; see {folder / "log.txt"}.')
        checkpoint = folder / result['checkpoint']
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        return result, dict(config=config, checkpoint=str(checkpoint), sha256=digest)

    def plan(self, teacher: dict[str, str] | None) -> dict[Path, dict[str, Any]]:
        """Folder and settings of every run: seed by seed, the student alone first."""
        plan = {}
        for seed in self.args.seeds:
            if self.select:
                grid = [(BASELINE, None)]
                grid += [(m, w) for m, weights in self.args.select_weights for w in weights]
            else:
                grid = [(m, self.benchmark.weights.get(m)) for m in self.args.methods]
            for method, weight in grid:
                name = f'{method}-seed{seed}'
                if self.select and weight is not None:
                    name = f'{method}-w{weight:g}-seed{seed}'
                of = self.pair.student_of if self.pair and method == BASELINE else None
                base = self.folder(of or self.args.pair)
                folder = base / ('select' if self.select else 'runs') / name
                used = None if method == BASELINE else teacher
                plan[folder] = self.spec(method, seed, weight, teacher=used)
        return plan

    def run(self) -> int:
        """Trains what is missing and writes the tables; returns the number of failed runs."""
        distils = self.select or set(self.args.methods) != {BASELINE}
        result = teacher = None
        if distils or self.args.teacher_only:
            result, teacher = self.train_teacher()
        if self.args.teacher_only:
            print(f'Teacher: {headline(result)} ({teacher["checkpoint"]})')
            return 0
        plan = self.plan(teacher)
        failed: list[Path] = []
        if not self.args.report_only:
            todo = [folder for folder, run in plan.items() if prepare_run(folder, run) is None]
            print(f'{len(plan)} runs, {len(plan) - len(todo)} of them finished before.', flush=True)
            failed = Pool(self.args.jobs, self.args.threads).run(todo)
        results = [read_results(folder) for folder in plan]
        self.write([r for r in results if r is not None], result)
        return len(failed)

    def write(self, runs: list[dict[str, Any]], teacher: dict[str, Any] | None) -> None:
        """Single runs as CSV, the table as Markdown, all of it as JSON; prints the table."""
        about = machine()
        argv = [a for a in self.args.argv if a != '--report-only']  # it changes no number
        command = shlex.join(['python', 'benchmarks/detection.py', *argv])
        where = self.benchmark.select if self.select else self.benchmark.report
        seeds = ', '.join(map(str, self.args.seeds))
        lines = [f'Measured on the {where}; seeds {seeds}; last epoch of each run.']
        if teacher:
            scale = self.task.scale
            numbers = ', '.join(f'{m} {scale * teacher[m]:.1f}' for m in self.task.metrics)
            lines.append(f'Teacher (one run, {teacher["split"]} split): {numbers}.')
            millions = [f'{r["parameters"] / 1e6:.2f} M' for r in (teacher, *runs[:1])]
            lines.append(f'Parameters of teacher and student: {", ".join(millions)}.')
        lines.append(f'Command: `{command}`')
        lines.append('Machine: ' + ', '.join(f'{k} {v}' for k, v in about.items()))
        rows: list[dict[str, Any]] = []
        methods = {*self.args.methods, *(r['method'] for r in runs)}
        titles = {m: title(m) for m in sorted(methods)} if self.pair else None
        if self.select:
            table = summary.to_selection_markdown(runs, self.task, titles)
        else:
            rows = summary.summarise(runs, self.args.methods, self.task)
            table = (
                summary.to_task_markdown(rows, self.task, titles, self.pair.weights)
                if self.pair
                else summary.to_markdown(rows, self.benchmark.weights)
            )
        text = '\n\n'.join([*lines, table])
        name = self.args.dataset
        name += (f'_{self.args.pair}' if self.pair else '') + ('_selection' if self.select else '')
        used = {m: self.pair.terms(m) for m in titles} if self.pair else LOSSES
        content = dict(command=command, machine=about, losses=used, teacher=teacher, rows=rows)
        self.save(name, text, runs, content)

    def save(
        self, name: str, text: str, runs: list[dict[str, Any]], content: dict[str, Any]
    ) -> None:
        """The three files of a study: single runs, the table, all of it; prints the table."""
        out = self.args.results
        summary.write_csv(out / f'{name}.csv', runs, self.task)
        (out / f'{name}.md').write_text(text)
        # What every evaluation gave stays in the work directory.
        short = [{k: v for k, v in run.items() if k != 'history'} for run in runs]
        text_of_all = json.dumps(dict(content, runs=short), indent=1)
        (out / f'{name}.json').write_text(text_of_all + '\n')
        print('\n' + text)


def parse_grid(
    texts: list[str] | None, known: Iterable[str] = LOSSES
) -> list[tuple[str, list[float]]]:
    """``['cwd=5,20']`` to ``[('cwd', [5.0, 20.0])]``."""
    grid = []
    for text in texts or []:
        method, _, values = text.partition('=')
        try:
            weights = [float(v) for v in values.split(',')]
        except ValueError:
            weights = []
        if method not in known or not weights:
            raise SystemExit(
                f'--select-weights {text!r}: expected METHOD=W1,W2,... with a METHOD of '
                f'{", ".join(known)}.'
            )
        grid.append((method, weights))
    return grid


def make_parser(
    description: str | None, datasets: Iterable[str] = BENCHMARKS
) -> argparse.ArgumentParser:
    """A parser with what every study of pairs may be told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--dataset', choices=list(datasets), required=True)
    add('--seeds', nargs='+', type=int, default=[0, 1, 2])
    add('--jobs', type=int, default=2, help='runs at a time (default 2)')
    add('--threads', type=int, default=1, help='threads of each run (default 1)')
    add('--epochs', type=int, help="of the students; default: the pair's or the config's")
    add('--teacher-epochs', type=int, help="default: the pair's or the config's")
    add('--report-only', action='store_true', help='tables of what is finished; no student trains')
    add('--work-dir', type=Path, default=Path('work_dirs/bench'))
    add('--results', type=Path, default=Path('benchmarks/results'), help='where the tables go')
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('--pair', help='a pair of one kind of head; default: losses on features, on GFL')
    add('--methods', nargs='+', metavar='METHOD', help='default: all')
    add('--select-weights', nargs='+', metavar='METHOD=W,W', help='compare weights instead')
    add('--teacher-only', action='store_true', help='train the teacher and stop')
    args = parser.parse_args(argv)
    args.argv = argv
    pairs = PAIRS.get(args.dataset, {})
    if args.pair is None:
        known: Iterable[str] = LOSSES
        args.methods = args.methods or list(METHODS)
        unknown = sorted(set(args.methods) - set(METHODS))
    elif args.pair not in pairs:
        raise SystemExit(f'--pair {args.pair}: {args.dataset} has {", ".join(pairs)}.')
    else:
        known = pairs[args.pair].weights
        args.methods = args.methods or list(pairs[args.pair].methods)
        parts = {part for method in args.methods for part in method.split('+')}
        unknown = sorted(parts - {BASELINE, *known})
    if unknown:
        joined = ', joined by "+"' if args.pair else '; others need --pair'
        raise SystemExit(
            f'--methods {" ".join(unknown)}: expected {BASELINE} or {", ".join(known)}{joined}.'
        )
    args.select_weights = parse_grid(args.select_weights, known)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    os.chdir(ROOT)  # configs and work directories are named from here
    return min(Study(args).run(), 1)


if __name__ == '__main__':
    sys.exit(main())
