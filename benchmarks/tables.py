#!/usr/bin/env python
"""Writes the tables of the documents from ``benchmarks/results/*.json``.

    python benchmarks/tables.py             # writes what is between the markers anew
    python benchmarks/tables.py --check     # only says which pages differ; exit status 1

A marker in README.md or in a page of docs/ is a comment of HTML, and what it makes stands between
it and ``<!-- end -->``. NAME is a file of results without ``.json``:

    <!-- table: NAME -->                        every method of one file
    <!-- table: NAME about -->                  the same below its teacher, sizes and command
    <!-- table: NAME methods=student,kd -->     some methods
    <!-- gains: NAME NAME ... rows=student,GDD=gdd_channel,KD=dkd/kd -->
                                                a column for each file; gain over the student alone.
                                                Of ``dkd/kd`` a file's first one is shown
    <!-- method: kd NAME NAME ... -->           a row for each file: what one method gave
    <!-- gain: NAME METHOD -->                  a single gain, in a sentence
    <!-- value: NAME METHOD -->                 the same for the metric itself
    <!-- predicted: forward -->                 predictions and outcomes of ``forward.py``
    <!-- predicted: NAME NAME ... -->           the same of files of ``recipes.py --predict``
    <!-- coverage: NAME -->                     what ``sweep.py`` found, config by config
    <!-- matrix: NAME -->                       which kinds teach which, of ``detection_matrix.py``

Files of ``recipes.py`` (``recipes_digits_gfl_sgd``) are tables like all others.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import (  # noqa: E402
    cls_methods,
    coverage_table,
    forward_outcomes,
    head_methods,
    matrix_table,
    recipes,
    summary,
)
from benchmarks.cls_summary import row_cells  # noqa: E402
from benchmarks.methods import BASELINE, OPTIMIZERS, TASKS, TITLES, Task  # noqa: E402
from mmkd_plugin.cli.running import new_parser  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results'
END = '<!-- end -->'
NAMES = 'table|gains|method|gain|value|predicted|coverage|matrix'
MARKER = re.compile(rf'<!-- ({NAMES}): (.*?) -->(.*?)<!-- end -->', re.S)

DATASETS = dict(digits='digits', bccd='BCCD', clothing10='clothing')
PAIRS = {
    'faster': 'Faster R-CNN',
    'mask': 'Mask R-CNN',
    'gfl': 'GFL',
    'fcos': 'FCOS',
    'retinanet': 'RetinaNet',
    'rtmdet': 'RTMDet',
    'detr': 'Deformable DETR',
    'pspnet': 'PSPNet',
    'gfl-fcos': 'GFL → FCOS',
    'faster-gfl': 'Faster R-CNN → GFL',
    'resnet14_resnet8-narrow': 'ResNet14 → narrow ResNet8',
    'resnet18_shufflenet': 'ResNet18 → ShuffleNetV2 0.5',
}
METRICS = dict(mask_AP='mask AP', top1='top-1')


def pair_title(dataset: str, pair: str) -> str:
    """Of a column or a row: ``'GFL on digits'``."""
    return f'{PAIRS.get(pair, pair)} on {DATASETS.get(dataset, dataset)}'


def recipe_title(args: argparse.Namespace) -> str:
    """The same of a file of ``recipes.py``, from its command."""
    optimizer = OPTIMIZERS[args.optimizer].title
    parts = [
        pair_title(args.dataset, args.pair),
        optimizer,
        *('trained start',) * (args.start == recipes.TRAINED),
    ]
    return ', '.join(filter(None, parts))


class MarkerError(ValueError):
    """A marker that cannot be followed; the message says what to write."""


@dataclass(frozen=True)
class Results:
    """One file of results.

    Args:
        name: Of the file.
        content: What is in it.
    """

    name: str
    content: dict[str, Any]

    @property
    def task(self) -> Task:
        return TASKS[self.runs[0].get('task', 'detection')]

    @property
    def runs(self) -> list[dict[str, Any]]:
        return self.content['runs']

    @property
    def recipes(self) -> bool:
        return self.name.startswith('recipes_')

    @property
    def pair(self) -> dict[str, Any]:
        """Teacher, student and rows of a file about classifiers, which has one pair here."""
        (pair,) = self.content['tables'].values()
        return pair

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.pair['rows'] if 'tables' in self.content else self.content['rows']

    def row(self, method: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if row['method'] == method), None)

    def title(self) -> str:
        """Of a column or a row: ``'GFL on digits'``."""
        if self.recipes:
            return recipe_title(recipes.parse_args(shlex.split(self.content['command'])[2:]))
        if 'tables' in self.content:
            dataset = DATASETS[self.runs[0]['dataset']]
            epochs = self.runs[0]['epochs']
            return f'classifiers on {dataset}, {epochs} epochs'
        dataset, _, pair = self.name.partition('_')
        return pair_title(dataset, pair.removesuffix('_bins') or 'gfl')

    def method_title(self, method: str) -> str:
        if method == BASELINE:
            return TITLES[BASELINE]
        if self.recipes:
            return f'`{method}`'
        if 'tables' in self.content:
            return cls_methods.METHODS[method].title
        return head_methods.title(method) if '_' in self.name else TITLES[method]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part that methods are joined from, as far as it was fixed."""
        found = {r['method']: r['weight'] for r in self.runs if r.get('weight') is not None}
        for method, terms in (self.content.get('losses') or {}).items():
            if isinstance(terms, list):
                found.update(zip(method.split('+'), (term['weight'] for term in terms)))
        return found

    def weight(self, method: str) -> str:
        """Of a row: the fixed weights of its terms, or those that a recipe found."""
        if self.recipes:
            return recipes.weights_text([run for run in self.runs if run['method'] == method])
        used = [f'{self.weights[p]:g}' for p in method.split('+') if p in self.weights]
        return ' + '.join(used) or '–'


def read(name: str) -> dict[str, Any]:
    """What one file holds.

    Raises:
        MarkerError: if there is no such file, with those of like names.
    """
    path = RESULTS / f'{name}.json'
    known = sorted(p.stem for p in RESULTS.glob('*.json'))
    if not path.is_file():
        near = get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise MarkerError(f'{name!r} is no file of benchmarks/results; near: {", ".join(near)}.')
    return json.loads(path.read_text())


@cache
def load(name: str) -> Results:
    """Reads one file with rows.

    Raises:
        MarkerError: if it has none, or is not there.
    """
    content = read(name)
    if not content.get('rows') and 'tables' not in content:
        raise MarkerError(f'{name!r} has no rows that could be a table.')
    return Results(name, content)


# -- what the markers make -----------------------------------------------------------------------


def table(names: list[str], options: dict[str, str]) -> str:
    """Every method of one file, as the benchmark itself writes it."""
    about = 'about' in names
    results = load(_single([n for n in names if n != 'about']))
    wanted = _list(options.pop('methods', ''))
    _nothing_else(options)
    for method in wanted:
        _row(results, method)
    rows = [r for r in results.rows if not wanted or r['method'] in wanted]
    if wanted:
        rows.sort(key=lambda row: wanted.index(row['method']))
    if 'tables' in results.content:
        heads = ['method', 'best', 'last', 'gain (last)', 'seeds better']
        cells = [row_cells(row)[:-1] for row in rows]  # without seconds
        text = summary.markdown(heads, cells)
    elif results.recipes:
        text = recipes.table(rows, results.runs, results.task)
    else:
        titles = {row['method']: results.method_title(row['method']) for row in rows}
        text = summary.to_task_markdown(rows, results.task, titles, results.weights)
    return (_about(results) if about else '') + text


def gains(names: list[str], options: dict[str, str]) -> str:
    """A column for each file, a row for each method: the gain in the main metric."""
    files = [load(name) for name in names]
    rows = _list(options.pop('rows', ''))
    short = options.pop('dataset', 'yes') == 'no'
    _nothing_else(options)
    if not files or not rows:
        raise MarkerError('gains wants names of files and rows=METHOD,TITLE=METHOD/METHOD.')
    heads = []
    for file in files:
        title = re.sub(' on [^,]+', '', file.title()) if short else file.title()
        main = METRICS.get(file.task.main, file.task.main)
        heads.append(title if main == 'AP' else f'{title} ({main})')
    lines = []
    for spec in rows:
        title, _, methods = spec.rpartition('=')
        alternatives = methods.split('/')
        title = title or next(
            file.method_title(m) for m in alternatives for file in files if file.row(m)
        )
        lines.append([title, *(_gain_of_first(file, alternatives) for file in files)])
    return summary.markdown(['', *heads], lines)


def method(names: list[str], options: dict[str, str]) -> str:
    """A row for each file: the student alone, with one method, and the gain."""
    _nothing_else(options)
    wanted, *files = names
    heads = ['measured on', 'metric', 'weight', 'student alone', 'with it', 'gain', 'seeds better']
    lines = []
    for file in map(load, files):
        row, alone = _row(file, wanted), _row(file, BASELINE)
        main, scale = file.task.main, file.task.scale
        line = [file.title(), METRICS.get(main, main), file.weight(wanted)]
        if row['incomplete']:
            line += [f'incomplete: {row["incomplete"]}', '', '', '']
        else:
            line.append(summary.points(alone[main], scale=scale))
            line += summary.number_cells(row, file.task, [main])
        lines.append(line)
    return summary.markdown(heads, lines, texts=2)


def gain(names: list[str], options: dict[str, str]) -> str:
    """One gain, to stand in a sentence."""
    return _number(names, options, 'gain')


def value(names: list[str], options: dict[str, str]) -> str:
    """One mean of the main metric, to stand in a sentence."""
    return _number(names, options, None)


def predicted(names: list[str], options: dict[str, str]) -> str:
    """How many verdicts of the doctor were right, and each of them."""
    _nothing_else(options)
    if names == ['forward']:
        content = read('forward')
        counted = forward_outcomes.score_text(content['score'])
        return f'{counted}\n\n{forward_outcomes.table(content["outcomes"])}'
    rows, files = [], [load(name) for name in names]
    for file in files:
        for told in read(f'{recipes.PREDICTED}{file.name}')['predictions']:
            found = [_row(file, method) for method in (BASELINE, told['recipe'])]
            made = forward_outcomes.outcome_of(told, *found, file.task)
            rows.append(dict(made, title=file.title()))
    if len({file.task.main for file in files}) != 1:
        raise MarkerError('the files of one table must measure the same.')
    counted = forward_outcomes.score_text(forward_outcomes.score(rows))
    return f'{counted}\n\n{forward_outcomes.table(rows, files[0].task)}'


def coverage(names: list[str], options: dict[str, str]) -> str:
    """Which packaged configs each recipe trains."""
    _nothing_else(options)
    return coverage_table.text(read(_single(names)))


def matrix(names: list[str], options: dict[str, str]) -> str:
    """Which kinds of detectors teach which by their detections."""
    _nothing_else(options)
    return matrix_table.text(read(_single(names)))


KINDS: dict[str, Callable[[list[str], dict[str, str]], str]] = dict(
    table=table,
    gains=gains,
    method=method,
    gain=gain,
    value=value,
    predicted=predicted,
    coverage=coverage,
    matrix=matrix,
)


def _number(names: list[str], options: dict[str, str], key: str | None) -> str:
    _nothing_else(options)
    if len(names) != 2:
        raise MarkerError(f'expected a file and a method, got {" ".join(names)!r}.')
    results, wanted = load(names[0]), names[1]
    row = _row(results, wanted)
    if row['incomplete']:
        raise MarkerError(f'{wanted!r} of {names[0]!r} is incomplete: {row["incomplete"]}.')
    return summary.points(row[key or results.task.main], bool(key), results.task.scale)


def _gain_of_first(file: Results, methods: list[str]) -> str:
    row = next((row for row in map(file.row, methods) if row is not None), None)
    if row is None:
        return ''
    if row['incomplete']:
        return 'incomplete'
    if row['method'] == BASELINE:
        return summary.points(row[file.task.main], scale=file.task.scale)
    return summary.points(row['gain'], True, file.task.scale)


def _about(results: Results) -> str:
    """Teacher, sizes and command of a file."""
    command = re.sub(r' --(jobs|threads) \d+', '', results.content['command'])
    if 'tables' in results.content:
        teacher = results.pair['result']
        text = f'Teacher (one run): {teacher["top1"]:.2f}. '
        parameters = results.rows[0]['parameters']
    else:
        teacher, task = results.content['teacher'], results.task
        numbers = ', '.join(
            f'{m.replace("_", " ")} {task.scale * teacher[m]:.1f}' for m in task.metrics
        )
        text = f'Teacher (one run, {teacher["split"]} split): {numbers}. '
        parameters = results.runs[0]['parameters']
    sizes = ' and '.join(f'{p / 1e6:.3g} M' for p in (teacher['parameters'], parameters))
    return f'{text}Parameters of teacher and student: {sizes}.\n\n```bash\n{command}\n```\n\n'


def _row(results: Results, wanted: str) -> dict[str, Any]:
    row = results.row(wanted)
    if row is None:
        known = ', '.join(r['method'] for r in results.rows)
        raise MarkerError(f'{results.name!r} has no method {wanted!r}; it has {known}.')
    return row


def _single(names: list[str]) -> str:
    if len(names) != 1:
        raise MarkerError(f'expected the name of one file, got {" ".join(names)!r}.')
    return names[0]


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(',') if part.strip()]


def _nothing_else(options: dict[str, str]) -> None:
    if options:
        raise MarkerError(f'unknown option {", ".join(options)}.')


# -- pages ---------------------------------------------------------------------------------------


def render(text: str, page: str = 'the page') -> str:
    """A page with everything between its markers made anew.

    Args:
        text: Of the page.
        page: Its name in messages.

    Raises:
        MarkerError: if a marker cannot be followed or has no end.
    """
    started = len(re.findall(rf'<!-- (?:{NAMES}): ', text))

    def fill(match: re.Match[str]) -> str:
        kind, words, _ = match.groups()
        parts = shlex.split(words)
        options = dict(part.split('=', 1) for part in parts if '=' in part)
        try:
            made = KINDS[kind]([part for part in parts if '=' not in part], options)
        except MarkerError as error:
            raise MarkerError(f'{page}, marker `{kind}: {words}`: {error}') from None
        made = re.sub(r'(?<=\| )-(?=\d)|^-(?=\d)', '−', made)
        inner = f'\n\n{made.strip()}\n\n' if '\n' in made else made
        return f'<!-- {kind}: {words} -->{inner}{END}'

    done, count = MARKER.subn(fill, text)
    if count != started:
        raise MarkerError(f'{page}: {started} markers, but {count} with an {END}.')
    return done


def pages() -> list[Path]:
    """The documents that may have markers."""
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def main(argv: list[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, say what differs')
    args = parser.parse_args(argv)
    stale = 0
    for page in pages():
        name, text = page.relative_to(ROOT).as_posix(), page.read_text()
        try:
            made = render(text, name)
        except MarkerError as error:
            raise SystemExit(str(error)) from None
        if made == text:
            continue
        stale += 1
        print(f'{name}: {"differs from the results" if args.check else "written"}')
        if not args.check:
            page.write_text(made)
    return min(stale, 1) if args.check else 0


if __name__ == '__main__':
    sys.exit(main())
