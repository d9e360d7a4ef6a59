#!/usr/bin/env python
"""What the recipes give by default: the student alone, and with each recipe as a user types it.

    python benchmarks/recipes.py --dataset digits --pair gfl
    python benchmarks/recipes.py --dataset digits --pair gfl --optimizer sgd
    python benchmarks/recipes.py --dataset digits --pair gfl --recipes gdd gdd:published gdd:1
    python benchmarks/recipes.py --dataset digits --pair gfl --start trained
    python benchmarks/recipes.py --dataset clothing10 --pair resnet18_shufflenet

Every run has the hook that ``tools/train.py --recipe NAME`` writes. A recipe may give its weights
(``gdd:20+kd:auto``), which is how a grid of fixed weights is compared with the default. Pairs,
teachers and data are those of ``detection.py`` and, for classifiers, ``classification.py``. A run
that ends in NaN is a result: its metrics are 0, and the table says in how many seeds.

With ``--predict`` it asks the doctor what will become of each recipe, which must not have been
trained by then, and stops. Teacher and student alone are trained first. ``docs/why-not.md``
compares the answers with the runs that follow.

With ``--start trained`` every run, the student alone included, begins with one student that was
trained on other digits (the set of seed 1).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import asked, summary  # noqa: E402
from benchmarks.cls_methods import BENCHMARKS as CLASSIFIERS  # noqa: E402
from benchmarks.detection import DetectionStudy, make_parser, other_digits  # noqa: E402
from benchmarks.head_methods import PAIRS, Pair  # noqa: E402
from benchmarks.methods import BASELINE, OPTIMIZERS, Task  # noqa: E402
from benchmarks.pool import label, read_results  # noqa: E402
from benchmarks.study import missing  # noqa: E402
from benchmarks.worker import build_config  # noqa: E402
from mmkd_plugin import recipes  # noqa: E402
from mmkd_plugin.cli.runs import write_json  # noqa: E402

DEFAULT = ('gdd', 'kd', 'gdd+kd')
TRAINED = 'trained'
PREDICTED = 'predicted_'
# What has a second training set.
OTHER_DIGITS = {('digits', task) for task in ('detection', 'instance', 'semantic')}


def all_pairs() -> dict[str, dict[str, Pair]]:
    """The pairs of detectors and segmenters, and those of classifiers, by data set."""
    pairs = {dataset: dict(known) for dataset, known in PAIRS.items()}
    for dataset, study in CLASSIFIERS.items():
        for name, networks in study.pairs.items():
            pairs.setdefault(dataset, {})[name] = Pair(
                *map(study.config, networks),
                kind='image',
                methods=(BASELINE,),
                epochs=(None, None),
                report=study.report,
                select=study.select or 'nothing',
                task='classification',
                split=study.split,
            )
    return pairs


class RecipeStudy(DetectionStudy):
    """The runs of one pair with one optimizer."""

    script = 'benchmarks/recipes.py'
    pairs = all_pairs()

    def spec(self, method: str, seed: int, weight: float | None, **changes: Any) -> dict[str, Any]:
        run = super().spec(BASELINE, seed, weight, **changes)
        if changes.get('config') is not None:  # the teacher is the one of the other studies
            return run
        run['evaluations'] = 1
        if self.args.optimizer != 'own':
            run['optimizer'] = self.args.optimizer
        if method != BASELINE:
            run.update(method=method, recipe=method)
        return run

    def plan(self, teacher: dict[str, str] | None) -> dict[Path, dict[str, Any]]:
        name, start = f'recipes-{self.args.optimizer}', {}
        if self.args.start == TRAINED:
            name, start = f'{name}-{TRAINED}', dict(load_from=self.trained_student())
        base = self.folder(self.args.pair) / name
        return {
            base / f'{method.replace(":", "=")}-seed{seed}': self.spec(
                method, seed, None, teacher=None if method == BASELINE else teacher, **start
            )
            for seed in self.args.seeds
            for method in self.args.methods
        }

    def trained_student(self) -> str:
        """The checkpoint of a student of other digits; trains it where it is missing."""
        assert self.pair is not None
        options = other_digits(('train', 'val', 'test'), self.pair.task)
        run = super().spec(BASELINE, 0, None, options=options, evaluations=1)
        folder = self.folder(self.args.pair) / TRAINED
        return self.teach(self.pool, {TRAINED: (folder, run)})[1][TRAINED]['checkpoint']

    @property
    def name(self) -> str:
        """Of the tables."""
        name = f'recipes_{self.args.dataset}_{self.args.pair}'
        name += '' if self.args.optimizer == 'own' else f'_{self.args.optimizer}'
        name += '' if self.args.start == 'new' else f'_{self.args.start}'
        return name + (f'_{self.args.name}' if self.args.name else '')

    def predict(self) -> int:
        """Asks the doctor about every recipe, and writes its answers.

        Raises:
            SystemExit: if there are answers, or runs of a recipe.
        """
        file = self.args.results / f'{PREDICTED}{self.name}.json'
        if file.is_file():
            raise SystemExit(f'{file} is there: predictions are made once.')
        result, teacher = self.train_teachers()
        plan = self.plan(teacher)
        for folder, run in plan.items():
            if run['method'] != BASELINE and folder.exists():
                raise SystemExit(f'{label(folder)} was begun before it was predicted.')
        seed = self.args.seeds[0]
        first = {run['method']: folder for folder, run in plan.items() if run['seed'] == seed}
        alone = first[BASELINE]
        if self.pool.run(missing({alone: plan[alone]})):
            return 1
        trained = read_results(alone)
        assert trained is not None
        rows = []
        for method in self.args.recipes:
            # The doctor reads the validation images, also where others are reported.
            cfg = build_config(dict(plan[first[method]], split='val'), first[method])
            told = asked.answer(cfg, alone / trained['checkpoint'])
            made = dict(teacher=result[self.task.main], teacher_sha256=teacher['sha256'])
            rows.append(dict(recipe=method, **told, **made))
            print(f'{method}: {told["answer"]} ({"; ".join(told["because"])})', flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dict(command=self.command, rule=asked.rule(), predictions=rows))
        return 0

    def write(self, runs: list[dict[str, Any]], teacher: dict[str, Any] | None) -> None:
        rows = summary.summarise(runs, self.args.methods, self.task)
        optimizer = self.args.optimizer
        lines = [
            f'Measured on the {self.benchmark.report}; seeds {self.seeds}; last epoch of each run.',
            f'Optimizer: {optimizer} ({OPTIMIZERS[optimizer].about}).',
        ]
        if self.args.start == TRAINED:
            lines.append(
                'Every run begins with one student that was trained on the digits set of seed 1.'
            )
        self.save(self.name, lines, table(rows, runs, self.task), runs, teacher=teacher, rows=rows)


def table(rows: list[dict[str, Any]], runs: list[dict[str, Any]], task: Task) -> str:
    """A row for each recipe: the weights of its terms, metrics, paired gain, runs that diverged."""
    heads = ['recipe', 'weights', *task.metrics, f'gain in {task.main}', 'seeds better', 'NaN']
    lines = []
    for row in rows:
        own = [run for run in runs if run['method'] == row['method']]
        name = row['method'] if row['method'] != BASELINE else 'student alone'
        diverged = sum(bool(run.get('diverged')) for run in own)
        numbers = summary.number_cells(row, task)
        lines.append([name, weights_text(own), *numbers, f'{diverged}/{len(own)}'])
    return summary.markdown(heads, lines, texts=2)


def weights_text(runs: list[dict[str, Any]]) -> str:
    """The weights that the runs had: of each term the smallest and the largest."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, weight in (run.get('weights') or {}).items():
            found.setdefault(name, []).append(weight)
    texts = []
    for name, values in found.items():
        low, high = (f'{value:.3g}' for value in (min(values), max(values)))
        texts.append(f'{name} {low}' if low == high else f'{name} {low} to {high}')
    return ', '.join(texts) or '–'


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__, RecipeStudy.pairs)
    add = parser.add_argument
    add('--pair', required=True, help='gfl, fcos, faster, mask ... or a pair of classifiers')
    add('--recipes', nargs='+', default=list(DEFAULT), help=f'default: {" ".join(DEFAULT)}')
    add(
        '--optimizer',
        choices=list(OPTIMIZERS),
        default='own',
        help='; '.join(f'{name}: {x.about}' for name, x in OPTIMIZERS.items()),
    )
    add('--start', choices=('new', TRAINED), default='new', help='of the students (default: new)')
    add(
        '--name', default='', help='added to the names of the tables, beside those of other recipes'
    )
    add('--predict', action='store_true', help='ask the doctor before the runs are made, and stop')
    args = parser.parse_args(argv)
    known = RecipeStudy.pairs[args.dataset]
    if args.pair not in known:
        raise SystemExit(f'--pair {args.pair}: {args.dataset} has {", ".join(known)}.')
    if args.start == TRAINED and (args.dataset, known[args.pair].task) not in OTHER_DIGITS:
        raise SystemExit('--start trained: only detectors and segmenters of digits have it.')
    for name in args.recipes:
        try:
            recipes.methods(name)
        except ValueError as error:
            raise SystemExit(f'--recipes: {error}') from None
    args.argv, args.methods = argv, [BASELINE, *args.recipes]
    args.select_weights = []
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    os.chdir(ROOT)  # configs and work directories are named from here
    made = RecipeStudy(args)
    return made.predict() if args.predict else min(made.run(), 1)


if __name__ == '__main__':
    sys.exit(main())
