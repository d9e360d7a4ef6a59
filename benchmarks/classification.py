#!/usr/bin/env python
"""What distillation gains in image classification: a student alone and with each method, by seed.

    python benchmarks/classification.py --dataset digits                      # seconds a run
    python benchmarks/classification.py --dataset clothing10 --jobs 2         # minutes a run
    python benchmarks/classification.py --dataset clothing10 --select-lr sgd=0.05,0.1,0.2

CIFAR-100 has an entry of its own, ``cifar100.py``. Every teacher is trained once, then the
students. Each run is a process that can be killed: started again, the command reuses finished runs
and goes on with the others from their last checkpoints. Learning rates are chosen with
``--select-lr`` (teacher and student alone, on the split that the table never sees). Tables go to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402

from benchmarks import cls_summary, study  # noqa: E402
from benchmarks.cls_methods import BENCHMARKS, METHODS, Benchmark, build_run  # noqa: E402
from benchmarks.methods import BASELINE, TASKS  # noqa: E402
from benchmarks.pool import Pool  # noqa: E402

DATA_KEYS = ('data_root', 'root')  # where the data lies does not change a result


def digest(config: Config) -> str:
    """Hash of all a config says, wherever its data lies."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in sorted(value.items()) if k not in DATA_KEYS}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    text = json.dumps(plain(config.to_dict()), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class ClassificationStudy(study.Study):
    """The runs of one data set under one work directory."""

    task = TASKS['classification']

    def __init__(self, args: argparse.Namespace, benchmark: Benchmark) -> None:
        env = dict(CUDA_VISIBLE_DEVICES=args.gpu) if args.gpu is not None else {}
        super().__init__(args, Pool(args.jobs, args.threads, env))
        self.script = args.command
        self.benchmark = benchmark
        self.folder = args.work_dir / args.dataset
        self.pairs = {name: benchmark.pairs[name] for name in args.pairs}

    def spec(self, network: str, method: str, seed: int, **changes: Any) -> dict[str, Any]:
        """What ``run.json`` says: everything a result depends on."""
        args, config = self.args, Config.fromfile(self.benchmark.config(network))
        run = dict(
            task='classification',
            dataset=args.dataset,
            config=self.benchmark.config(network),
            config_sha256=digest(config),
            pair=None,
            method=method,
            weight=None,
            terms=[],
            task_weight=1.0,
            seed=seed,
            split=self.benchmark.split,
            epochs=args.epochs or config.train_cfg.max_epochs,
            options={},
            teacher=None,
            amp=args.amp,
            compile=args.compile,
            device=args.device,
        )
        run.update(changes)
        run['options'] = {**fast_options(config, args.fast), **args.options, **run['options']}
        return run

    def distils(self) -> bool:
        return not self.args.select_lr and super().distils()

    def train_teachers(self) -> tuple[dict[str, dict], dict[str, dict]]:
        changes = dict(epochs=self.args.teacher_epochs) if self.args.teacher_epochs else {}
        networks = sorted({teacher for teacher, _ in self.pairs.values()})
        teachers = {
            name: (self.folder / 'teachers' / name, self.spec(name, 'teacher', 0, **changes))
            for name in networks
        }
        return self.teach(self.pool, teachers)

    def plan(self, teachers: dict[str, dict] | None) -> study.Plan:
        """Folder and settings of every run, seed by seed; students alone serve all their pairs."""
        if self.args.select_lr:
            return self.plan_selection()
        plan = {}
        for seed in self.args.seeds:
            for pair, (teacher, student) in self.pairs.items():
                for method in self.args.methods:
                    if method == BASELINE:
                        folder = self.folder / 'alone' / f'{student}-seed{seed}'
                        plan[folder] = self.spec(student, method, seed)
                        continue
                    folder = self.folder / pair / f'{method}-seed{seed}'
                    run = self.spec(student, method, seed, pair=pair, teacher=teachers[teacher])
                    run.update(build_run(method, run, self.benchmark))
                    plan[folder] = run
        return plan

    def plan_selection(self) -> study.Plan:
        """The networks alone with each learning rate, on the split that is not reported."""
        plan = {}
        networks = {n: None for pair in self.pairs.values() for n in pair}
        students = {student for _, student in self.pairs.values()}
        for seed in self.args.seeds:
            for name in networks:
                for optimizer, rates in self.args.select_lr:
                    if optimizer == 'adamw' and name not in students:
                        continue  # no teacher trains with it
                    for lr in rates:
                        run = self.spec(name, f'{name} {optimizer}', seed, split='val', weight=lr)
                        run.update(build_run(BASELINE, run, self.benchmark, optimizer, lr))
                        folder = f'{name}-{optimizer}-lr{lr:g}-seed{seed}'
                        plan[self.folder / 'select' / folder] = run
        return plan

    def write(self, runs: list[dict[str, Any]], teachers: dict[str, dict] | None) -> None:
        args, teachers = self.args, teachers or {}
        where = self.benchmark.select if args.select_lr else self.benchmark.report
        trained_on = sorted({run['device'] for run in runs})
        trained_on += [f'{key}={getattr(args, key)}' for key in ('amp', 'compile')
                       if getattr(args, key)]  # fmt: skip
        graphs = sorted({run['graphs'] for run in runs if run.get('graphs')})
        if graphs:
            trained_on.append(f'compiled graphs of a run: {", ".join(map(str, graphs))}')
        lines = [
            f'Top-1 in percent on the {where}; seeds {self.seeds}.',
            f'Trained on: {", ".join(trained_on)}',
        ]
        name = f'classification_{args.dataset}'
        if args.select_lr:
            name += '_selection'
            tables, text = {}, cls_summary.selection_markdown(runs)
        else:
            tables = cls_summary.tables(runs, teachers, self.pairs, args.methods, self.benchmark)
            text = cls_summary.to_markdown(tables, self.benchmark)
        self.save(name, lines, text, runs, teachers.values(), teachers=teachers, tables=tables)


def fast_options(config: Config, fast: bool) -> dict[str, Any]:
    """Twice the batch and learning rate; with a quarter of the epochs it is the fast schedule."""
    if not fast:
        return {}
    return {
        'train_dataloader.batch_size': 2 * config.train_dataloader.batch_size,
        'optim_wrapper.optimizer.lr': 2 * config.optim_wrapper.optimizer.lr,
    }


def choose_device(name: str | None) -> tuple[str, str | None]:
    """``'cuda:1'`` to its kind and what the workers' ``CUDA_VISIBLE_DEVICES`` is to be."""
    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    kind, _, number = name.partition(':')
    if kind == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(f'--device {name}: PyTorch finds no GPU here.')
    if kind not in ('cpu', 'cuda') or (number and not number.isdigit()):
        raise SystemExit(f'--device {name}: expected cpu, cuda or cuda:N.')
    return kind, '' if kind == 'cpu' else number or None


def build_parser(description: str) -> argparse.ArgumentParser:
    """The options that all data sets share."""
    parser = study.make_parser(description, jobs=1, work_dir='work_dirs/bench_classification')
    add = parser.add_argument
    default = [name for name, method in METHODS.items() if method.default]
    add('--pairs', nargs='+', metavar='TEACHER_STUDENT', help='default: all')
    add('--methods', nargs='+', choices=METHODS, default=default, metavar='METHOD',
        help=f'of {", ".join(METHODS)}; default: {", ".join(default)}')  # fmt: skip
    add('--device', help='cpu, cuda or cuda:N; default: a GPU if there is one')
    add('--amp', choices=['bfloat16', 'float16'], help='mixed precision (GPU)')
    add('--compile', nargs='?', const='default', metavar='MODE', help='torch.compile the step')
    add('--select-lr', nargs='+', metavar='OPTIMIZER=LR,LR', help='compare learning rates instead')
    return parser


def finish(args: argparse.Namespace, argv: list[str], command: str) -> argparse.Namespace:
    """Checks what argparse cannot, and adds what the study needs."""
    benchmark = BENCHMARKS[args.dataset]
    args.argv, args.command = argv, command
    args.options = getattr(args, 'options', {})
    args.fast = getattr(args, 'fast', False)
    if args.fast and args.epochs:
        raise SystemExit('--fast is a schedule of 60 epochs: give --fast or --epochs, not both.')
    if args.fast:
        args.epochs = 60
    rates = args.select_lr
    args.select_lr = study.parse_grid('--select-lr', 'OPTIMIZER=LR1,LR2', rates, ('sgd', 'adamw'))
    if args.select_lr and benchmark.select is None:
        raise SystemExit(f'--select-lr: {args.dataset} has no split to choose on.')
    unknown = sorted(set(args.pairs or []) - set(benchmark.pairs))
    if unknown:
        raise SystemExit(
            f'--pairs {" ".join(unknown)}: {args.dataset} has {", ".join(benchmark.pairs)}.'
        )
    args.pairs = args.pairs or list(benchmark.pairs)
    args.device, args.gpu = choose_device(args.device)
    if args.amp and args.device == 'cpu':
        raise SystemExit("--amp needs a GPU: MMEngine's AmpOptimWrapper has no CPU version.")
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(__doc__)
    datasets = [name for name in BENCHMARKS if name != 'cifar100']
    parser.add_argument('--dataset', choices=datasets, required=True)
    args = parser.parse_args(argv)
    os.chdir(ROOT)  # configs and work directories are named from here
    args = finish(args, argv, 'benchmarks/classification.py')
    return min(ClassificationStudy(args, BENCHMARKS[args.dataset]).run(), 1)


if __name__ == '__main__':
    sys.exit(main())
