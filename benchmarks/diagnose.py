#!/usr/bin/env python
"""Why a method helps or not: what its terms do to a student, measured on batches of training data.

    python benchmarks/diagnose.py work_dirs/bench/digits/faster/runs/kd-seed0 --batches 8

It measures what ``mmkd doctor`` does (``mmkd_plugin/diagnosis``), on runs of the benchmarks.

For every term of a finished run, at the run's own last weights or at those of ``--checkpoint``:

- the gradient of the term in the student's backbone against that of the task's own losses (ratio
  of the norms, cosine of the angle),
- how many rows of logits count, and how many of them have a class (positives),
- how good the teacher is where the student's assigner wants a class: its top-1 accuracy and its
  probability of that class, the student's beside them, and where its attention lies: the share of
  its scores that falls on positives.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

import torch  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import Runner, load_checkpoint  # noqa: E402
from torch import nn  # noqa: E402

import mmkd_plugin  # noqa: E402
from benchmarks.summary import markdown  # noqa: E402
from benchmarks.worker import build_config  # noqa: E402
from mmkd_plugin.cli.running import new_parser  # noqa: E402
from mmkd_plugin.cli.runs import write_json  # noqa: E402
from mmkd_plugin.diagnosis.measure import measure_terms  # noqa: E402
from mmkd_plugin.diagnosis.term_checks import numbers_of  # noqa: E402


def load(folder: Path, checkpoint: Path | None) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Student with its terms attached, its training batches, and the settings of the run.

    Args:
        folder: Of a finished run.
        checkpoint: Weights of the student; by default the run's own last ones.
    """
    run = json.loads((folder / 'run.json').read_text())
    if not run['terms']:
        raise SystemExit(f'{folder} is a run without terms: there is nothing to look at.')
    config = build_config(run, folder)
    init_default_scope(config.get('default_scope', 'mmdet'))
    torch.manual_seed(0)
    from mmengine.registry import MODELS

    student = MODELS.build(config.model)
    if checkpoint is None:
        checkpoint = folder / json.loads((folder / 'results.json').read_text())['checkpoint']
    load_checkpoint(student, str(checkpoint), map_location='cpu')
    teacher = {key: run['teacher'][key] for key in ('config', 'checkpoint')}
    mmkd_plugin.attach(student, teacher, run['terms'])
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    return student.train(), loader, run


def measure(student: nn.Module, loader: Any, batches: int) -> dict[str, dict[str, float]]:
    """Means over the batches, by term; gradients are those in the backbone."""
    among = [p for p in student.backbone.parameters() if p.requires_grad]
    found = measure_terms(student, loader, batches, among=among)
    means = {}
    for name, term in found.terms.items():
        if found.refused or term.refused:
            raise SystemExit(f'{name}: {found.refused or term.refused}')
        numbers, counts = vars(numbers_of(term)), term.counts
        kept = ('loss', 'gradient_ratio', 'cosine', 'rows')
        means[name] = {key: numbers[key] for key in kept if numbers[key] is not None}
        if counts.positives:
            means[name].update(
                positives_per_image=counts.positives / found.images,
                teacher_accuracy=counts.teacher / counts.positives,
                student_accuracy=counts.student / counts.positives,
                teacher_probability=counts.teacher_p / counts.positives,
                scores_on_positives=counts.on / max(counts.all, 1e-12),
            )
    return means


def to_markdown(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """One line per run and term."""
    columns = dict(
        loss='loss × weight',
        gradient_ratio='gradient ratio',
        cosine='cosine',
        rows='rows',
        positives_per_image='positives an image',
        teacher_accuracy='teacher right',
        teacher_probability='its probability',
        student_accuracy='student right',
        scores_on_positives='scores on positives',
    )
    lines = []
    for run, terms in rows.items():
        for term, values in terms.items():
            cells = [f'{values[c]:.3g}' if c in values else '–' for c in columns]
            lines.append([run, term, *cells])
    return markdown(['run', 'term', *columns.values()], lines, texts=2)


def main(argv: list[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument('folders', nargs='+', type=Path, metavar='RUN_FOLDER')
    parser.add_argument('--batches', type=int, default=8)
    parser.add_argument('--checkpoint', type=Path, help="default: each run's own last")
    parser.add_argument('--out', type=Path, help='also write a Markdown and a JSON file, NAME.md')
    args = parser.parse_args(argv)
    folders = [folder.resolve() for folder in args.folders]
    checkpoint = args.checkpoint.resolve() if args.checkpoint else None
    out = args.out.resolve() if args.out else None
    os.chdir(ROOT)  # configs are named from here
    rows = {}
    for folder in folders:
        student, loader, run = load(folder, checkpoint)
        rows[f'{run["method"]}, seed {run["seed"]}'] = measure(student, loader, args.batches)
    table = to_markdown(rows)
    print(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix('.md').write_text(table)
        write_json(out.with_suffix('.json'), rows)
    return 0


if __name__ == '__main__':
    sys.exit(main())
