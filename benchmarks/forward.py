#!/usr/bin/env python
"""Was the doctor's verdict right? Predictions first, then the runs, then the table.

    python benchmarks/forward.py predict    # trains teachers and students alone, asks the doctor
    python benchmarks/forward.py run        # trains what was predicted, writes the table
    python benchmarks/forward.py report     # the table of what is finished

The rule of ``mmkd_plugin/diagnosis/verdict.py`` was made without these rows. Their predictions were
committed before their runs were made: ``predict`` refuses rows that have been trained.

The doctor is given the student alone of the first seed, and reads val images. Its rows are trained
with the recipe's default weights, as by ``mmkd train STUDENT --teacher ... --recipe NAME``. A gain
is a difference in top-1 on the test images, last epoch, to the student alone of the same seed.
What counts was fixed before the runs, with mean and sample standard deviation of a row's gains
over three seeds:

==============  ==============================================
outcome         gains
==============  ==============================================
helped          the mean is above 0, by more than a deviation
harmed          the mean is below 0, by more than a deviation
no clear gain   all else
==============  ==============================================

'helps' is right if it helped, else wrong. 'does not help' is right if it harmed or gave no clear
gain, else wrong. 'cannot tell' is neither; such rows are counted apart.

``CIFAR100_ROOT`` names the folder that holds ``cifar-100-python`` (default ``data/cifar100``), in
any row order.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import asked, study  # noqa: E402
from benchmarks.forward_outcomes import TASK, compare, score, score_text, table  # noqa: E402
from benchmarks.forward_pairs import PAIRS, STUDENTS, Network, data_options  # noqa: E402
from benchmarks.methods import BASELINE  # noqa: E402
from benchmarks.pool import Pool, label, read_results  # noqa: E402
from benchmarks.worker import build_config  # noqa: E402
from mmkd_plugin.cli.running import new_parser  # noqa: E402
from mmkd_plugin.cli.runs import read_json, write_json  # noqa: E402

PREDICTIONS = 'forward_predictions'


class ForwardStudy(study.Study):
    """Teachers and students alone, the doctor's predictions, and the runs that test them."""

    script = 'benchmarks/forward.py'
    task = TASK

    @property
    def file(self) -> Path:
        return self.args.results / f'{PREDICTIONS}.json'

    def distils(self) -> bool:
        return True

    def spec(
        self, dataset: str, network: Network, method: str, seed: int, **changes: Any
    ) -> dict[str, Any]:
        """What ``run.json`` says: everything a result depends on."""
        run = dict(
            task='classification',
            dataset=dataset,
            config=network.path,
            pair=None,
            method=method,
            weight=None,
            terms=[],
            seed=seed,
            split='test',
            epochs=network.epochs,
            evaluations=1,
            options={
                **{f'model.backbone.{key}': value for key, value in network.model.items()},
                **data_options(dataset, network.options),
            },
            teacher=None,
        )
        return {**run, **changes}

    def train_teachers(self) -> tuple[dict[str, dict], dict[str, dict]]:
        folder = self.args.work_dir / 'teachers'
        results, named = self.teach(
            self.pool,
            {
                name: (
                    folder / name,
                    self.spec(pair.dataset, pair.teacher, 'teacher', pair.teacher.seed),
                )
                for name, pair in PAIRS.items()
            },
        )
        for name, pair in PAIRS.items():
            if pair.teacher.model:
                named[name]['cfg_options'] = {
                    f'model.backbone.{key}': value for key, value in pair.teacher.model.items()
                }
        return results, named

    def alone(self) -> study.Plan:
        """The students alone; their name stands in the place of a pair."""
        return {
            self.args.work_dir / 'alone' / f'{name}-seed{seed}': self.spec(
                name, student, BASELINE, seed, pair=name
            )
            for name, student in STUDENTS.items()
            for seed in self.args.seeds
        }

    def rows(self, teachers: dict[str, dict], recipe: str, name: str) -> study.Plan:
        """The runs of one row, a seed each."""
        pair = PAIRS[name]
        return {
            self.args.work_dir / name / f'{recipe}-seed{seed}': self.spec(
                pair.dataset,
                STUDENTS[pair.student],
                recipe,
                seed,
                pair=name,
                recipe=recipe,
                teacher=teachers[name],
            )
            for seed in self.args.seeds
        }

    def plan(self, teachers: dict[str, dict]) -> study.Plan:
        self.predictions(teachers)
        plan = self.alone()
        for name, pair in PAIRS.items():
            for recipe in pair.recipes:
                plan.update(self.rows(teachers, recipe, name))
        return plan

    def predictions(self, teachers: dict[str, dict]) -> dict[str, Any]:
        """What was predicted.

        Raises:
            SystemExit: nothing was, or of other teachers.
        """
        told = read_json(self.file)
        if told is None:
            raise SystemExit(f'{self.file} is missing: predict comes before run.')
        for row in told['predictions']:
            if row['teacher_sha256'] != teachers[row['pair']]['sha256']:
                raise SystemExit(
                    f'{self.file}: {row["pair"]} was predicted with another teacher '
                    f'({row["teacher_sha256"][:12]}). A rerun needs predictions of its own: '
                    'give another --results.'
                )
        return told

    def predict(self) -> int:
        """Asks the doctor about every row, and writes its answers.

        Raises:
            SystemExit: if there are answers, or runs of a row.
        """
        if self.file.is_file():
            raise SystemExit(f'{self.file} is there: predictions are made once.')
        results, teachers = self.train_teachers()
        alone = self.alone()
        if self.pool.run(study.missing(alone)):
            return 1
        rows = [
            self.prediction(recipe, name, results, teachers, alone)
            for name, pair in PAIRS.items()
            for recipe in pair.recipes
        ]
        content = dict(
            command=self.command,
            rule=asked.rule(),
            alone={
                name: {
                    str(run['seed']): self.result(folder)[TASK.main]
                    for folder, run in alone.items()
                    if run['pair'] == name
                }
                for name in STUDENTS
            },
            predictions=rows,
        )
        write_json(self.file, content)
        for row in rows:
            print(f'{row["pair"]} {row["recipe"]}: {row["answer"]} ({"; ".join(row["because"])})')
        return 0

    def prediction(
        self,
        recipe: str,
        name: str,
        results: dict[str, dict],
        teachers: dict[str, dict],
        alone: study.Plan,
    ) -> dict[str, Any]:
        """The doctor's answer about one row."""
        runs = self.rows(teachers, recipe, name)
        for folder in runs:
            if folder.exists():
                raise SystemExit(f'{label(folder)} was begun before it was predicted.')
        first = next(f for f, run in alone.items() if run['pair'] == PAIRS[name].student)
        folder, run = next(iter(runs.items()))
        cfg = build_config(dict(run, split='val'), folder)
        checkpoint = first / self.result(first)['checkpoint']
        return dict(
            pair=name,
            recipe=recipe,
            **asked.answer(cfg, checkpoint),
            teacher=results[name][TASK.main],
            teacher_sha256=teachers[name]['sha256'],
        )

    @staticmethod
    def result(folder: Path) -> dict[str, Any]:
        """Of a run that is finished."""
        found = read_results(folder)
        assert found is not None
        return found

    def write(self, runs: list[dict[str, Any]], teachers: dict[str, dict]) -> None:
        told = read_json(self.file)
        assert told is not None
        rows = compare(told['predictions'], runs)
        counts = score(rows)
        lines = [
            f'Predictions of `mmkd doctor` before the runs ({self.file.name}), and what the runs '
            f'gave: top-1 on test images, seeds {self.seeds}, last epoch of each run.',
            score_text(counts),
        ]
        self.save(
            'forward', lines, table(rows), runs, teachers.values(), score=counts, outcomes=rows
        )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = new_parser(__doc__)
    add = parser.add_argument
    add('what', choices=('predict', 'run', 'report'))
    add('--seeds', nargs='+', type=int, default=[3, 4, 5])
    add('--jobs', type=study.positive, default=1, help='runs at a time (default %(default)s)')
    add('--threads', type=study.positive, default=1, help='CPU threads of each run (default 1)')
    add('--work-dir', type=Path, default=Path('work_dirs/bench_forward'))
    add('--results', type=Path, default=Path('benchmarks/results'), help='where the files go')
    args = parser.parse_args(argv)
    args.argv = ['run' if word == 'report' else word for word in argv]  # it changes no number
    args.teacher_only, args.report_only = False, args.what == 'report'
    os.chdir(ROOT)  # configs and work directories are named from here
    made = ForwardStudy(args, Pool(args.jobs, args.threads))
    return made.predict() if args.what == 'predict' else min(made.run(), 1)


if __name__ == '__main__':
    sys.exit(main())
