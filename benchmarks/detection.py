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
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import study, summary  # noqa: E402
from benchmarks.head_methods import PAIRS, Pair, title  # noqa: E402
from benchmarks.methods import (  # noqa: E402
    BASELINE,
    BENCHMARKS,
    DETECTION,
    LOSSES,
    METHODS,
    build_terms,
)
from benchmarks.pool import Pool  # noqa: E402


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
    splits = ('val', 'test') if pair else ('train', 'val', 'test')
    return other_digits(splits, pair.task if pair else 'detection')


def other_digits(splits: Iterable[str], task: str) -> dict[str, Any]:
    """Config options by which these splits are of the digits set of seed 1."""
    root = 'data/digits-seed1'
    options: dict[str, Any] = {}
    for split in splits:
        options[f'{split}_dataloader.dataset.data_root'] = root
        options[f'{split}_dataloader.dataset.digits.seed'] = 1
        # The metric of semantic maps has no file of its own.
        if split != 'train' and task != 'semantic':
            options[f'{split}_evaluator.ann_file'] = f'{root}/annotations/val.json'
    return options


class DetectionStudy(study.Study):
    """The runs of one data set, or of one pair on it, under one work directory."""

    script = 'benchmarks/detection.py'
    pairs = PAIRS

    def __init__(self, args: argparse.Namespace) -> None:
        self.select = bool(args.select_weights)
        self.pair: Pair | None = self.pairs[args.dataset][args.pair] if args.pair else None
        self.benchmark = self.pair or BENCHMARKS[args.dataset]
        self.task = self.pair.measured if self.pair else DETECTION
        # Before the pool: its workers inherit where the data lies.
        self.options = prepare_data(args.dataset, self.select, self.pair)
        super().__init__(args, Pool(args.jobs, args.threads))

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

    def distils(self) -> bool:
        return self.select or super().distils()

    def train_teachers(self) -> tuple[dict[str, Any], dict[str, str]]:
        # Other training images have a teacher of their own.
        own = self.select and self.args.dataset == 'digits' and not self.pair
        of = self.pair.teacher_of if self.pair else None
        folder = self.folder(of or self.args.pair) / ('teacher-select' if own else 'teacher')
        changes = dict(
            config=self.benchmark.teacher,
            split=self.benchmark.split,
            epochs=self.epochs(teacher=True),
        )
        run = {**self.spec(BASELINE, 0, None, **changes), 'method': 'teacher'}
        if self.pair:
            run['options'] = {}  # the same teacher whatever the students are measured on
        alone = Pool(1, self.args.threads * self.args.jobs)
        results, named = self.teach(alone, dict(teacher=(folder, run)))
        return results['teacher'], named['teacher']

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

    def write(self, runs: list[dict[str, Any]], teacher: dict[str, Any] | None) -> None:
        where = self.benchmark.select if self.select else self.benchmark.report
        lines = [f'Measured on the {where}; seeds {self.seeds}; last epoch of each run.']
        if teacher:
            scale = self.task.scale
            numbers = ', '.join(f'{m} {scale * teacher[m]:.1f}' for m in self.task.metrics)
            lines.append(f'Teacher (one run, {teacher["split"]} split): {numbers}.')
            millions = [f'{r["parameters"] / 1e6:.2f} M' for r in (teacher, *runs[:1])]
            lines.append(f'Parameters of teacher and student: {", ".join(millions)}.')
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
        name = self.args.dataset
        name += (f'_{self.args.pair}' if self.pair else '') + ('_selection' if self.select else '')
        used = {m: self.pair.terms(m) for m in titles} if self.pair else LOSSES
        self.save(name, lines, table, runs, losses=used, teacher=teacher, rows=rows)


def parse_grid(
    texts: list[str] | None, known: Iterable[str] = LOSSES
) -> list[tuple[str, list[float]]]:
    """``['cwd=5,20']`` to ``[('cwd', [5.0, 20.0])]``."""
    return study.parse_grid('--select-weights', 'METHOD=W1,W2', texts, known)


def make_parser(
    description: str | None, datasets: Iterable[str] = BENCHMARKS
) -> argparse.ArgumentParser:
    """A parser with what every study of pairs may be told."""
    parser = study.make_parser(description, jobs=2, work_dir='work_dirs/bench')
    parser.add_argument('--dataset', choices=list(datasets), required=True)
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('--pair', help='a pair of one kind of head; default: losses on features, on GFL')
    add('--methods', nargs='+', metavar='METHOD', help='default: all')
    add('--select-weights', nargs='+', metavar='METHOD=W,W', help='compare weights instead')
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
    return min(DetectionStudy(args).run(), 1)


if __name__ == '__main__':
    sys.exit(main())
