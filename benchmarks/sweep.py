#!/usr/bin/env python
"""Which packaged configs can be distilled: a small pair of each, a step with each recipe.

    python benchmarks/sweep.py                       # all that the installed mmdet ships; goes on
    python benchmarks/sweep.py ssd/ tood/ --again    # some of them, once more
    python benchmarks/sweep.py --list                # which there are

Every config is one for its pair of detector and heads, or the one of its folder. A student of it
is made small, and trains for a step on made-up data with the recipes ``gdd``, ``kd`` and
``gdd+kd``: with a teacher of its own kind, and with one of another kind. It is

- ``ok``: finite distillation losses, each with a gradient into the student, and a checkpoint that
  loads strictly into the plain model;
- ``refused``: a sentence before the first step;
- ``crashed``: anything else. The last line of the error is kept.

A student that does not train alone (a package that is missing, say) is not judged. Each row has a
process of its own and a limit of time; with two recipes most took 10 to 40 seconds. The file of
results is written row by row, so that the sweep goes on where it stopped. ``benchmarks/tables.py``
draws the table of docs/coverage.md from it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks.coverage_judge import RECIPES, TEACHERS, judge, last_line, quiet  # noqa: E402
from benchmarks.coverage_models import cases, configs_root  # noqa: E402
from mmkd_plugin.cli.running import new_parser  # noqa: E402
from mmkd_plugin.cli.runs import read_json, write_json  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results' / 'coverage_mmdet.json'
PACKAGES = (
    'torch',
    'mmengine',
    'mmcv',
    'mmdet',
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
)


def versions() -> dict[str, str]:
    """Of the packages that decide on the results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument('pattern', nargs='*', help='parts of names; all configs without one')
    parser.add_argument('--out', type=Path, default=RESULTS, help='file of results (%(default)s)')
    parser.add_argument('--timeout', type=float, default=600, help='seconds of a row (%(default)s)')
    parser.add_argument(
        '--teachers', nargs='+', choices=TEACHERS, default=TEACHERS, help='of which kind'
    )
    parser.add_argument('--recipes', nargs='+', choices=RECIPES, default=RECIPES, help='which')
    parser.add_argument('--again', action='store_true', help='also what the file has already')
    parser.add_argument('--list', action='store_true', help='only print the configs')
    args = parser.parse_args(argv)
    known = cases() if not _named(args.pattern) else None
    wanted = [c for c in known or args.pattern if not args.pattern or _fits(c, args.pattern)]
    if args.list or not wanted:
        print('\n'.join(wanted) or f'No config has {" or ".join(args.pattern)} in its name.')
        return 0 if wanted else 1
    content = content_of(args.out, args.again, dict(configs=[], rows={}))
    if known is not None:
        content['configs'] = known
    quiet()
    for i, config in enumerate(wanted):
        before = content['rows'].get(config, {})
        tries = [(t, r) for t in args.teachers for r in args.recipes]
        if not args.again:
            tries = [(t, r) for t, r in tries if r not in before.get(t, {})]
        if not tries or ('not_judged' in before and not args.again):
            continue
        begin = time.perf_counter()
        row = judge_apart(config, args.timeout, tries)
        content['rows'][config] = joined(before, row)
        content['rows'] = dict(sorted(content['rows'].items()))
        write_json(args.out, content)
        seconds = time.perf_counter() - begin
        print(f'[{i + 1}/{len(wanted)}] {config}: {_told(row)}, {seconds:.0f} s', flush=True)
    return 0


def _named(patterns: Sequence[str]) -> bool:
    """Whether they are whole names: reading all packaged configs to choose some takes minutes."""
    return bool(patterns) and all((configs_root() / pattern).is_file() for pattern in patterns)


def _fits(config: str, patterns: Sequence[str]) -> bool:
    return any(pattern in config for pattern in patterns)


def content_of(out: Path, again: bool, nothing: dict[str, Any]) -> dict[str, Any]:
    """What a file of results has already, or ``nothing`` beside the versions.

    Raises:
        SystemExit: it was made with other versions.
    """
    content = read_json(out)
    if content is None:
        return dict(versions=versions(), **nothing)
    if content['versions'] != versions():
        if not again:
            raise SystemExit(
                f'{out} was made with {json.dumps(content["versions"])}, here are '
                f'{json.dumps(versions())}. Name another --out.'
            )
        content['versions'] = versions()
    return content


def joined(known: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row with what it has of before and was not tried again."""
    if 'not_judged' in row:
        return row
    outcomes = {t: known.get(t, {}) | row.get(t, {}) for t in TEACHERS if t in {*known, *row}}
    return row | outcomes


def judge_apart(config: str, timeout: float, tries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """One row, made by a process of its own, which may crash or hang."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context('fork')  # mmdet is imported already
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_row, args=(config, folder, there, tries))
        process.start()
        there.close()
        try:
            if here.poll(timeout):
                return here.recv()
            return dict(not_judged=f'no result after {timeout:g} s')
        except EOFError:
            process.join()
            return dict(not_judged=f'its process ended with code {process.exitcode}')
        finally:
            process.kill()
            process.join()


def _row(config: str, folder: str, answer: Any, tries: Sequence[tuple[str, str]]) -> None:
    with open(os.devnull, 'w') as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            answer.send(judge(config, Path(folder), tries))
        except Exception as error:
            answer.send(dict(not_judged=last_line(error)))


def _told(row: dict[str, Any]) -> str:
    if 'not_judged' in row:
        return f'not judged, {row["not_judged"]}'
    return '; '.join(
        f'{teacher} ' + ' '.join(f'{r} {x["outcome"]}' for r, x in row[teacher].items())
        for teacher in TEACHERS
        if teacher in row
    )


if __name__ == '__main__':
    sys.exit(main())
