#!/usr/bin/env python
"""Why a method helps or not: what its terms do to a student, measured on batches of training data.

    python benchmarks/diagnose.py work_dirs/bench/digits/faster/runs/kd-seed0 --batches 8

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
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

import torch  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import Runner, load_checkpoint  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import mmkd_plugin  # noqa: E402
from benchmarks.summary import markdown  # noqa: E402
from benchmarks.worker import build_config  # noqa: E402
from mmkd_plugin.cli.running import new_parser  # noqa: E402
from mmkd_plugin.cli.runs import write_json  # noqa: E402
from mmkd_plugin.views import Predictions  # noqa: E402


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
    distiller = mmkd_plugin.attach(student, teacher, run['terms'])
    distiller.set_progress(10**6, 10**6)  # after every warm-up
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    return student.train(), loader, run


def listen(term: Any) -> list[tuple[Predictions, Predictions]]:
    """What the views of a term read, appended step by step."""
    heard: list[tuple[Predictions, Predictions]] = []
    own = term.student.read
    theirs = term.teacher.read
    state: dict[str, Any] = {}

    def read_student(*args: Any, **kwargs: Any) -> Any:
        state['student'] = own(*args, **kwargs)
        return state['student']

    def read_teacher(*args: Any, **kwargs: Any) -> Any:
        found = theirs(*args, **kwargs)
        heard.extend(zip(state['student'], found))
        return found

    term.student.read, term.teacher.read = read_student, read_teacher
    return heard


def probabilities(predictions: Predictions, logits: Tensor) -> Tensor:
    """Of the foreground classes, (..., num_classes)."""
    soft = logits.softmax(-1) if predictions.activation == 'softmax' else logits.sigmoid()
    return soft[..., : predictions.num_classes]


def describe(student: Predictions, teacher: Predictions) -> dict[str, float]:
    """Positives, and both networks' answers there; empty if the head tells no labels."""
    counts = dict(positives=0.0, teacher=0.0, student=0.0, teacher_p=0.0, on=0.0, all=0.0)
    for s, t in zip(student.levels, teacher.levels):
        if s.labels is None:
            return {}
        counted = torch.ones_like(s.labels, dtype=torch.bool)
        for mask in (s.valid, t.valid, None if s.label_weights is None else s.label_weights > 0):
            counted = counted if mask is None else counted & mask
        positive = counted & (s.labels >= 0) & (s.labels < student.num_classes)
        wanted = s.labels[positive]
        said = probabilities(teacher, t.logits)
        score = said.amax(-1) if t.score is None else t.score
        if t.score is None and t.quality is not None:
            score = score * t.quality.sigmoid()
        counts['positives'] += len(wanted)
        # argmax over all columns: to call a digit background is a mistake, too
        for name, levels in (('teacher', t.logits), ('student', s.logits)):
            counts[name] += int((levels[positive].argmax(-1) == wanted).sum())
        picked = said[positive].gather(1, wanted[:, None]) if len(wanted) else said.new_zeros(0)
        counts['teacher_p'] += float(picked.sum())
        counts['on'] += float(score[positive].sum())
        counts['all'] += float(score[counted].sum())
    return counts


def gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """All gradients as one vector."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]
    return torch.cat([part.flatten() for part in parts])


def total(losses: dict[str, Any]) -> Tensor:
    values = [v for k, v in losses.items() if 'loss' in k]
    return sum(sum(v) if isinstance(v, (list, tuple)) else v for v in values)


def measure(student: nn.Module, loader: Any, batches: int) -> dict[str, dict[str, float]]:
    """Means over the batches, by term."""
    terms = list(student.distiller.terms)
    heard = {
        t.name: listen(t)
        for t in terms
        if hasattr(t, 'selection') and t.student.of_classes and t.teacher.of_classes
    }
    parameters = [p for p in student.backbone.parameters() if p.requires_grad]
    found: dict[str, dict[str, list[float]]] = {t.name: {} for t in terms}
    images = 0
    for number, data in enumerate(loader):
        if number == batches:
            break
        data = student.data_preprocessor(data, training=True)
        images += len(data['inputs'])
        losses = student(**data, mode='loss')
        added = {f'loss_{t.name}' for t in terms}
        task = gradient(total({k: v for k, v in losses.items() if k not in added}), parameters)
        for term in terms:
            own = gradient(losses[f'loss_{term.name}'], parameters)
            values = dict(
                loss=float(losses[f'loss_{term.name}'].detach()),
                gradient_ratio=float(own.norm() / task.norm()),
                cosine=float(nn.functional.cosine_similarity(own, task, dim=0)),
            )
            if f'{term.name}_rows' in losses:
                values['rows'] = float(losses[f'{term.name}_rows'])
            for key, value in values.items():
                found[term.name].setdefault(key, []).append(value)
    means = {name: {k: fmean(v) for k, v in values.items()} for name, values in found.items()}
    for name, pairs in heard.items():
        counts = [c for pair in pairs if (c := describe(*pair))]
        sums = {k: sum(c[k] for c in counts) for k in counts[0]} if counts else {}
        if not sums or not sums['positives']:
            continue
        means[name].update(
            positives_per_image=sums['positives'] / images,
            teacher_accuracy=sums['teacher'] / sums['positives'],
            student_accuracy=sums['student'] / sums['positives'],
            teacher_probability=sums['teacher_p'] / sums['positives'],
            scores_on_positives=sums['on'] / max(sums['all'], 1e-12),
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
