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
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402

from benchmarks import cls_summary, summary  # noqa: E402
from benchmarks.cls_methods import BENCHMARKS, METHODS, Benchmark, build_run  # noqa: E402
from benchmarks.methods import BASELINE, TASKS  # noqa: E402
from benchmarks.pool import Pool, machine, prepare_run, read_results  # noqa: E402

TASK = TASKS['classification']
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


class Study:
    """The runs of one data set under one work directory."""

    def __init__(self, args: argparse.Namespace, benchmark: Benchmark) -> None:
        self.args = args
        self.benchmark = benchmark
        self.folder = args.work_dir / args.dataset
        self.pairs = {name: benchmark.pairs[name] for name in args.pairs}
        env = dict(CUDA_VISIBLE_DEVICES=args.gpu) if args.gpu is not None else {}
        self.pool = Pool(args.jobs, args.threads, env)

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

    def train_teachers(self) -> tuple[dict[str, dict], dict[str, dict]]:
        """Trains the teachers that are missing; returns their results, and how runs name them."""
        networks = sorted({teacher for teacher, _ in self.pairs.values()})
        folders = {name: self.folder / 'teachers' / name for name in networks}
        todo = []
        for name, folder in folders.items():
            changes = dict(epochs=self.args.teacher_epochs) if self.args.teacher_epochs else {}
            run = self.spec(name, 'teacher', 0, **changes)
            if prepare_run(folder, run) is None:
                todo.append(folder)
        self.pool.run(todo)
        results, named = {}, {}
        for name, folder in folders.items():
            result = read_results(folder)
            if result is None:
                raise SystemExit(
                    f'The teacher {name} could not be trained; see {folder / "log.txt"}.'
                )
            file = folder / result['checkpoint']
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            config = self.benchmark.config(name)
            results[name] = result
            named[name] = dict(config=config, checkpoint=str(file), sha256=sha256)
        return results, named

    def plan(self, teachers: dict[str, dict]) -> dict[Path, dict[str, Any]]:
        """Folder and settings of every run, seed by seed; students alone serve all their pairs."""
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

    def plan_selection(self) -> dict[Path, dict[str, Any]]:
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

    def run(self) -> int:
        """Trains what is missing and writes the tables; returns the number of failed runs."""
        teachers: dict[str, dict] = {}
        named: dict[str, dict] = {}
        if self.args.teacher_only or (
            not self.args.select_lr and set(self.args.methods) != {BASELINE}
        ):
            teachers, named = self.train_teachers()
        if self.args.teacher_only:
            for name, result in teachers.items():
                print(f'{name}: top-1 {result["top1"]:.2f} ({named[name]["checkpoint"]})')
            return 0
        plan = self.plan_selection() if self.args.select_lr else self.plan(named)
        todo = [folder for folder, run in plan.items() if prepare_run(folder, run) is None]
        print(f'{len(plan)} runs, {len(plan) - len(todo)} of them finished before.', flush=True)
        failed = self.pool.run(todo)
        runs = [result for folder in plan if (result := read_results(folder)) is not None]
        self.write(runs, teachers)
        return len(failed)

    def write(self, runs: list[dict[str, Any]], teachers: dict[str, dict]) -> None:
        """Single runs as CSV, the tables as Markdown, all of it as JSON; prints the tables."""
        args, about = self.args, machine()
        devices = sorted({run['device'] for run in runs})
        command = shlex.join(['python', args.command, *args.argv])
        where = self.benchmark.select if args.select_lr else self.benchmark.report
        seeds = ', '.join(map(str, args.seeds))
        speed = [f'{k}={v}' for k, v in dict(amp=args.amp, compile=args.compile).items() if v]
        graphs = sorted({run['graphs'] for run in runs if run.get('graphs')})
        if graphs:
            speed.append(f'compiled graphs of a run: {", ".join(map(str, graphs))}')
        lines = [
            f'Top-1 in percent on the {where}; seeds {seeds}.',
            f'Command: `{command}`',
            'Machine: ' + ', '.join(f'{k} {v}' for k, v in about.items()),
            'Trained on: ' + ', '.join([*devices, *speed]),
        ]
        name = f'classification_{args.dataset}'
        if args.select_lr:
            name += '_selection'
            tables, text = {}, cls_summary.selection_markdown(runs)
        else:
            tables = cls_summary.tables(runs, teachers, self.pairs, args.methods, self.benchmark)
            text = cls_summary.to_markdown(tables, self.benchmark)
        text = '\n\n'.join([*lines, text])
        summary.write_csv(args.results / f'{name}.csv', [*teachers.values(), *runs], TASK)
        (args.results / f'{name}.md').write_text(text)
        # Every epoch's accuracy stays in the work directory.
        short = [{k: v for k, v in run.items() if k != 'history'} for run in runs]
        content = dict(command=command, machine=about, teachers=teachers, tables=tables, runs=short)
        (args.results / f'{name}.json').write_text(json.dumps(content, indent=1) + '\n')
        print('\n' + text)


def fast_options(config: Config, fast: bool) -> dict[str, Any]:
    """Twice the batch and learning rate; with a quarter of the epochs it is the fast schedule."""
    if not fast:
        return {}
    return {
        'train_dataloader.batch_size': 2 * config.train_dataloader.batch_size,
        'optim_wrapper.optimizer.lr': 2 * config.optim_wrapper.optimizer.lr,
    }


def parse_grid(texts: list[str] | None) -> list[tuple[str, list[float]]]:
    """``['sgd=0.05,0.1']`` to ``[('sgd', [0.05, 0.1])]``."""
    grid = []
    for text in texts or []:
        optimizer, _, values = text.partition('=')
        try:
            rates = [float(v) for v in values.split(',')]
        except ValueError:
            rates = []
        if optimizer not in ('sgd', 'adamw') or not rates:
            raise SystemExit(
                f'--select-lr {text!r}: expected OPTIMIZER=LR1,LR2,... with sgd or adamw.'
            )
        grid.append((optimizer, rates))
    return grid


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


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} must be 1 or more')
    return value


def build_parser(description: str) -> argparse.ArgumentParser:
    """The options that all data sets share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = [name for name, method in METHODS.items() if method.default]
    add('--pairs', nargs='+', metavar='TEACHER_STUDENT', help='default: all')
    add('--methods', nargs='+', choices=METHODS, default=default, metavar='METHOD',
        help=f'of {", ".join(METHODS)}; default: {", ".join(default)}')  # fmt: skip
    add('--seeds', nargs='+', type=int, default=[0, 1, 2])
    add('--jobs', type=positive, default=1, help='runs at a time (default 1)')
    add('--threads', type=positive, default=1, help='CPU threads of each run (default 1)')
    add('--epochs', type=positive, help="of the students; default: the config's")
    add('--teacher-epochs', type=positive, help='default: as --epochs')
    add('--device', help='cpu, cuda or cuda:N; default: a GPU if there is one')
    add('--amp', choices=['bfloat16', 'float16'], help='mixed precision (GPU)')
    add('--compile', nargs='?', const='default', metavar='MODE', help='torch.compile the step')
    add('--select-lr', nargs='+', metavar='OPTIMIZER=LR,LR', help='compare learning rates instead')
    add('--teacher-only', action='store_true', help='train the teachers and stop')
    add('--work-dir', type=Path, default=Path('work_dirs/bench_classification'))
    add('--results', type=Path, default=Path('benchmarks/results'), help='where the tables go')
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
    args.select_lr = parse_grid(args.select_lr)
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
    return min(Study(args, BENCHMARKS[args.dataset]).run(), 1)


if __name__ == '__main__':
    sys.exit(main())
