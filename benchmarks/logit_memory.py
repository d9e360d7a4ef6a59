#!/usr/bin/env python
"""What logit terms on a dense head cost: memory and time by selection, beside the plain formula.

    python benchmarks/logit_memory.py                            # RetinaNet's maps, 800x1280
    python benchmarks/logit_memory.py --size 800 1344 --images 2  # 1333x800, padded to 32
    python benchmarks/logit_memory.py --device cuda

A step is what a term does once the two heads have run: select rows, compare them, send the gradient
back into the head's maps. Memory is counted beyond the two logits tensors: in the forward, and at
the height of the whole step, of which the gradient of the maps is a part that every loss on them
needs. The plain formula is KL(Bernoulli) level by level on the maps as they are, its lean form by
binary cross-entropies; most code copies the maps into rows first. Target: 65 MB for all positions
and 10 MB in the forward of a selection, per image of 800x1280 with 9 anchors and 80 classes.

Writes ``logit_memory.md`` and ``logit_memory.json`` under ``--out``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import memory, timing  # noqa: E402
from benchmarks.summary import listed, markdown  # noqa: E402
from mmkd_plugin.cli.runs import write_json  # noqa: E402
from mmkd_plugin.losses import CKDLoss, IPWDLoss, KDLoss, LoCaLoss, LogitLoss  # noqa: E402
from mmkd_plugin.terms.selected_loss import evaluate  # noqa: E402
from mmkd_plugin.terms.selection import parse_select  # noqa: E402
from mmkd_plugin.views.predictions import Level, Predictions  # noqa: E402

STRIDES = (8, 16, 32, 64, 128)
FEATURES = 256
POSITIVES = 1e-3  # share of anchors with a class
TARGETS = dict(all=65, score_weighted=65, teacher_topk=10)  # MB per image
LOSSES: dict[str, tuple[Callable[[], LogitLoss], tuple[str | dict, ...]]] = dict(
    kd=(lambda: KDLoss(1.0), ('all', 'score_weighted', 'teacher_topk', 'positive')),
    loca=(lambda: LoCaLoss(1.0), ('positive', 'all')),
    ckd=(CKDLoss, (CKDLoss.default_select['dense'],)),
    ipwd=(lambda: IPWDLoss(1.0, normalize='batch_mean', clip_max=5), ('positive',)),
)


class Maps:
    """What two dense heads of sigmoid logits gave for a batch.

    Args:
        size: height and width of the images.
        images: how many.
        anchors: predictions at each position.
        classes: columns of each.
        device: where.
        dtype: of the maps.
    """

    def __init__(
        self,
        size: Sequence[int],
        images: int = 1,
        anchors: int = 9,
        classes: int = 80,
        device: torch.device | str = 'cpu',
        dtype: torch.dtype = torch.float32,
    ) -> None:
        g = torch.Generator().manual_seed(0)
        self.shape = images, anchors, classes
        cells = [[-(-x // stride) for x in size] for stride in STRIDES]
        self.cells = sum(h * w for h, w in cells)

        def maps(channels: int, mean: float) -> list[Tensor]:
            made = (torch.randn(images, channels, h, w, generator=g) + mean for h, w in cells)
            return [x.to(device, dtype) for x in made]

        self.student = [x.requires_grad_() for x in maps(anchors * classes, -4)]
        self.teacher = maps(anchors * classes, -4)
        self.features = maps(FEATURES, 0)
        shapes = [(images, h * w, anchors) for h, w in cells]
        self.labels = [
            torch.where(
                torch.rand(s, generator=g) < POSITIVES,
                torch.randint(classes, s, generator=g),
                classes,
            ).to(device)
            for s in shapes
        ]
        self.valid = [(torch.rand(s, generator=g) < 0.95).to(device) for s in shapes]
        self.device = torch.device(device)

    @property
    def bytes(self) -> int:
        """Of the logits of one head."""
        return sum(x.nbytes for x in self.student)

    def rows(self, x: Tensor) -> Tensor:
        """A map (N, A C, H, W) as (N, P, A, C), a view."""
        return x.unflatten(1, self.shape[1:]).flatten(3).permute(0, 3, 1, 2)

    def predictions(self) -> tuple[Predictions, Predictions]:
        student = [
            Level(
                self.rows(x),
                labels=labels,
                label_weights=torch.ones_like(labels, dtype=torch.float32),
                valid=valid,
                features=features.flatten(2).transpose(1, 2),
            )
            for x, labels, valid, features in zip(
                self.student, self.labels, self.valid, self.features
            )
        ]
        teacher = [Level(self.rows(x)) for x in self.teacher]
        return tuple(
            Predictions('bbox_head', 'dense', levels, 'sigmoid', self.shape[2])
            for levels in (student, teacher)
        )

    def clear(self) -> None:
        for x in self.student:
            x.grad = None


def plain(maps: Maps) -> Tensor:
    """The Bernoulli KL divergence of all valid anchors, a mean over them."""
    total = rows = 0
    for s, t, valid in zip(maps.student, maps.teacher, maps.valid):
        s, t = maps.rows(s).float(), maps.rows(t).float()
        p = t.sigmoid()
        cross = nnf.binary_cross_entropy_with_logits(s, p, reduction='none')
        entropy = nnf.binary_cross_entropy_with_logits(t, p, reduction='none')
        total = total + ((cross - entropy).sum(3) * valid).sum()
        rows = rows + valid.sum()
    return total / rows


def make_step(name: str, select: str | dict, maps: Maps) -> Callable[[], Tensor]:
    """The forward of a term with a loss of ``LOSSES``."""
    loss = LOSSES[name][0]()
    classes = maps.shape[2]
    loss.set_activation('sigmoid')
    loss.connect((1, classes), (1, classes), (1, FEATURES), priors=maps.shape[1])
    loss.to(maps.device)
    selection = parse_select(select, 'select')

    def step() -> Tensor:
        value, _ = evaluate(loss, *maps.predictions(), selection)
        value = sum(loss.auxiliary.values(), value)
        loss.auxiliary, loss.report = {}, {}
        return value

    return step


def measure_memory(step: Callable[[], Tensor], maps: Maps) -> tuple[int, int]:
    """Bytes beyond the maps: height of the forward, and of forward and backward."""
    kept = []

    def whole() -> None:
        step().backward()

    maps.clear()
    forward = memory.peak(lambda: kept.append(step()), maps.device)
    kept.clear()
    both = memory.peak(whole, maps.device)
    maps.clear()
    return forward, both


def measure_time(steps: Sequence[Callable[[], Tensor]], maps: Maps, repeats: int) -> list[float]:
    """Median seconds of a forward and backward of each, taken in turns."""

    def whole(step: Callable[[], Tensor]) -> None:
        maps.clear()
        step().backward()

    times = timing.turns([partial(whole, step) for step in steps], maps.device, repeats, warmup=1)
    maps.clear()
    return [statistics.median(seconds) for seconds in times]


def measure(maps: Maps, repeats: int) -> list[dict[str, Any]]:
    """One row for each loss and selection, the plain formula first."""
    cases = [('plain formula', 'all', lambda: plain(maps))]
    for name, (_, selects) in LOSSES.items():
        for select in selects:
            by = select if isinstance(select, str) else select['by']
            cases.append((name, by, make_step(name, select, maps)))
    value = cases[0][2]().item()
    ours = cases[1][2]().item()
    if abs(ours - value) > 1e-5 * abs(value):
        raise RuntimeError(f'the plain formula gives {value}, KDLoss {ours}.')
    seconds = measure_time([step for *_, step in cases], maps, repeats)
    rows = []
    for (name, by, step), s in zip(cases, seconds):
        forward, both = measure_memory(step, maps)
        images = maps.shape[0]
        rows.append(
            dict(
                loss=name,
                select=by,
                forward_mb=forward / images / 1e6,
                step_mb=both / images / 1e6,
                gradient_mb=maps.bytes / images / 1e6,
                ms=1e3 * s,
                time_ratio=s / seconds[0],
            )
        )
    return rows


def to_markdown(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table, with the settings above it."""
    about_it = (
        'Memory beyond the two logits tensors, per image (MB = 1e6 bytes), and time, of one term '
        'on a dense head.'
    )
    heads = ['loss', 'select', 'forward MB', 'step MB', 'of it gradient MB', 'ms', 'time / plain']
    lines = []
    for row in rows:
        numbers = [row[key] for key in ('forward_mb', 'step_mb', 'gradient_mb', 'ms')]
        texts = [f'{number:.1f}' for number in numbers]
        lines.append([row['loss'], row['select'], *texts, f'{row["time_ratio"]:.2f}'])
    return f'{about_it}\n\n{listed(about)}\n\n{markdown(heads, lines, texts=2)}'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = timing.make_parser(__doc__)
    parser.add_argument('--size', nargs=2, type=int, default=[800, 1280], help='height and width')
    parser.add_argument('--images', type=int, default=1)
    parser.add_argument('--anchors', type=int, default=9)
    parser.add_argument('--classes', type=int, default=80)
    parser.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), default='float32')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(argv)
    device = timing.prepare(args)
    dtype = getattr(torch, args.dtype)
    maps = Maps(args.size, args.images, args.anchors, args.classes, device, dtype)
    about = timing.settings(
        device,
        images=args.images,
        size=f'{args.size[0]}x{args.size[1]}',
        anchors=maps.cells * args.anchors,
        classes=args.classes,
        dtype=args.dtype,
        logits_mb=round(maps.bytes / args.images / 1e6, 1),
        repeats=args.repeats,
    )
    rows = measure(maps, args.repeats)
    table = to_markdown(rows, about)
    print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'logit_memory.md').write_text(table)
    rounded = [{k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    write_json(args.out / 'logit_memory.json', dict(about=about, rows=rounded))
    return rows


if __name__ == '__main__':
    main()
