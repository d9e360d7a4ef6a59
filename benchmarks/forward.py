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

import functools
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

import numpy as np  # noqa: E402

from benchmarks import study, summary  # noqa: E402
from benchmarks.methods import BASELINE, TASKS  # noqa: E402
from benchmarks.pool import Pool, label, read_results  # noqa: E402
from benchmarks.worker import build_config  # noqa: E402
from mmkd_plugin.cli.doctor import diagnose  # noqa: E402
from mmkd_plugin.cli.running import new_parser  # noqa: E402
from mmkd_plugin.cli.runs import read_json, write_json  # noqa: E402
from mmkd_plugin.datasets import CIFAR100  # noqa: E402
from mmkd_plugin.diagnosis import verdict  # noqa: E402
from mmkd_plugin.diagnosis.examine import Options  # noqa: E402

TASK = TASKS['classification']
HELPED, HARMED, UNCLEAR = 'helped', 'harmed', 'no clear gain'
RIGHT = {verdict.HELPS: (HELPED,), verdict.NOT: (HARMED, UNCLEAR)}  # outcomes, by prediction
PREDICTIONS = 'forward_predictions'


@dataclass(frozen=True)
class Network:
    """What is trained alone.

    Attributes:
        config: its file below ``configs/classification``.
        model: changes of the config that make another network.
        options: other changes of the config.
        epochs: None is the config's.
        seed: of a teacher.
    """

    config: str
    model: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    seed: int = 0

    @property
    def path(self) -> str:
        return f'configs/classification/{self.config}.py'


@dataclass(frozen=True)
class Pair:
    """A teacher with a student, and the recipes that are tried.

    Attributes:
        title: in tables.
        dataset: ``'digits'`` or ``'cifar100'``.
        teacher: trained once.
        student: a name in :data:`STUDENTS`.
        recipes: a row for each.
    """

    title: str
    dataset: str
    teacher: Network
    student: str
    recipes: tuple[str, ...]


NARROW = 'digits/resnet8-narrow_digits'
STUDENTS = {
    'digits': Network(NARROW),
    'cifar100': Network(
        'cifar100/resnet8', dict(widths=[4, 4, 8, 16]), dict(images=1500), epochs=8
    ),
}
PAIRS = {
    'early': Pair(
        'digits, a teacher of 6 epochs', 'digits',
        Network('digits/resnet14_digits', epochs=6), 'digits', ('kd', 'gdd'),
    ),
    'twin': Pair(
        "digits, the student's network and training, another seed", 'digits',
        Network(NARROW, seed=9), 'digits', ('kd',),
    ),
    'longer': Pair(
        "digits, the student's network, four times as long", 'digits',
        Network(NARROW, epochs=320), 'digits', ('kd', 'gdd'),
    ),
    'large': Pair(
        'digits, ResNet32', 'digits',
        Network('digits/resnet14_digits', dict(depth=32)), 'digits', ('kd', 'dkd'),
    ),
    'all-images': Pair(
        'digits, ResNet14 trained on all 897 images', 'digits',
        Network(
            'digits/resnet14_digits',
            options={'train_dataloader.dataset.num_samples': None},
            epochs=12,
        ),
        'digits', ('kd', 'gdd', 'ckd'),
    ),
    'cifar': Pair(
        '10 classes of CIFAR-100, ResNet8 → narrow ResNet8', 'cifar100',
        Network('cifar100/resnet8', options=dict(images=2500), epochs=10), 'cifar100',
        ('kd', 'gdd', 'dkd'),
    ),
    'cifar-early': Pair(
        '10 classes of CIFAR-100, ResNet8 of 2 epochs → narrow ResNet8', 'cifar100',
        Network('cifar100/resnet8', options=dict(images=2500), epochs=2), 'cifar100',
        ('kd',),
    ),
}  # fmt: skip
CIFAR_CLASSES = 10  # the first ones
CIFAR_VAL = 300  # of their test images, for the doctor; the others are reported


# -- the outcome ---------------------------------------------------------------------------------


def outcome(gain: tuple[float, float]) -> str:
    """What a row's paired gains amount to.

    Args:
        gain: their mean and sample standard deviation.
    """
    mean, deviation = gain
    if mean > 0 and mean > deviation:
        return HELPED
    return HARMED if mean < 0 and mean < -deviation else UNCLEAR


def judged(prediction: str, happened: str) -> bool | None:
    """Whether a prediction was right; None where it did not commit itself."""
    return None if prediction == verdict.UNKNOWN else happened in RIGHT[prediction]


def compare(
    predictions: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each prediction, with its outcome.

    Args:
        predictions: of ``predict``.
        runs: finished runs, with ``pair``; those of students alone have their name there.

    Returns:
        The predictions, each with ``incomplete`` (why it has no outcome, or None) and ``alone``,
        ``gain``, ``wins``, ``outcome`` and ``right`` (None for 'cannot tell').
    """
    rows = []
    for told in predictions:
        recipe, student = told['recipe'], PAIRS[told['pair']].student
        own = [r for r in runs if (r['pair'], r['method']) == (told['pair'], recipe)]
        own += [r for r in runs if (r['pair'], r['method']) == (student, BASELINE)]
        alone, row = summary.summarise(own, [BASELINE, recipe], TASK)
        made = dict(told, incomplete=row['incomplete'] or alone['incomplete'])
        if not made['incomplete']:
            happened = outcome(row['gain'])
            made.update(alone=alone[TASK.main], gain=row['gain'], wins=row['wins'])
            made.update(outcome=happened, right=judged(told['answer'], happened))
        rows.append(made)
    return rows


def score(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Counts of :func:`compare`: right, wrong, undecided, and the same of clear rows.

    A row is clear where it helped or harmed.
    """
    done = [row for row in rows if not row['incomplete']]
    clear = [row for row in done if row['outcome'] != UNCLEAR]
    return dict(
        rows=len(done),
        right=sum(row['right'] is True for row in done),
        wrong=sum(row['right'] is False for row in done),
        cannot_tell=sum(row['right'] is None for row in done),
        clear_right=sum(row['right'] is True for row in clear),
        clear_wrong=sum(row['right'] is False for row in clear),
        clear_cannot_tell=sum(row['right'] is None for row in clear),
    )


def score_text(counts: dict[str, int]) -> str:
    """The counts as sentences."""
    told = counts['right'] + counts['wrong']
    clear = counts['clear_right'] + counts['clear_wrong']
    return (
        f'Of {counts["rows"]} rows, {counts["right"]} of {told} predictions were right, and '
        f'{counts["cannot_tell"]} were "cannot tell". Among the rows whose gain is beyond a '
        f'deviation, {counts["clear_right"]} of {clear} were right, and '
        f'{counts["clear_cannot_tell"]} were "cannot tell".'
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`compare` as Markdown, losing ones among them."""
    heads = ['teacher', 'recipe', 'predicted', 'because', 'outcome', 'right',
             'teacher alone', 'student alone', 'gain in top1', 'seeds better']  # fmt: skip
    marks = {True: 'yes', False: '**no**', None: '–'}
    lines = []
    for row in rows:
        title = PAIRS[row['pair']].title
        line = [title, f'`{row["recipe"]}`', row['answer'], '; '.join(row['because'])]
        if row['incomplete']:
            line += [f'incomplete: {row["incomplete"]}', *[''] * 5]
        else:
            numbers = [f'{row["teacher"]:.1f}', summary.points(row['alone'], scale=1)]
            gain = summary.points(row['gain'], sign=True, scale=1)
            wins = f'{row["wins"]}/{summary.MIN_SEEDS}'
            line += [row['outcome'], marks[row['right']], *numbers, gain, wins]
        lines.append(line)
    return summary.markdown(heads, lines, texts=6)


# -- the runs ------------------------------------------------------------------------------------


@functools.cache
def cifar_images(root: str, split: str) -> list[int]:
    """Places of the images of the first classes in a file of CIFAR-100."""
    labels = CIFAR100(root, split, check_md5=False).labels.numpy()
    return [int(place) for place in np.flatnonzero(labels < CIFAR_CLASSES)]


def data_options(dataset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Changes of a config; on CIFAR-100, ``images`` says how many are trained on."""
    if dataset == 'digits':
        return options
    root = os.environ.get('CIFAR100_ROOT', 'data/cifar100')
    test = cifar_images(root, 'test')
    chosen = dict(
        train=cifar_images(root, 'train')[: options['images']],
        val=test[:CIFAR_VAL],
        test=test[CIFAR_VAL:],
    )
    found: dict[str, Any] = {}
    for split, places in chosen.items():
        found[f'{split}_dataloader.dataset.check_md5'] = False
        found[f'{split}_dataloader.dataset.indices'] = places
    return found


class Study(study.Study):
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
        rule = Path(verdict.__file__)
        content = dict(
            command=self.command,
            rule=dict(file=rule.name, sha256=hashlib.sha256(rule.read_bytes()).hexdigest()),
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
        report = diagnose(cfg, Options(student_checkpoint=str(checkpoint))).as_dict()
        return dict(
            pair=name,
            recipe=recipe,
            answer=report['verdict']['answer'],
            because=report['verdict']['because'],
            codes=[f'{f["code"]} ({f["where"]})' for f in report['findings']],
            terms={
                term: {key: numbers[key] for key in ('weight', 'gradient_ratio', 'cosine')}
                for term, numbers in report['terms'].items()
            },
            seen=dict(teacher=report['teacher']['metrics'], student=report['student']['metrics']),
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
    args.argv = argv
    args.teacher_only, args.report_only = False, args.what == 'report'
    os.chdir(ROOT)  # configs and work directories are named from here
    made = Study(args, Pool(args.jobs, args.threads))
    return made.predict() if args.what == 'predict' else min(made.run(), 1)


if __name__ == '__main__':
    sys.exit(main())
