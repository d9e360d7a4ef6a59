#!/usr/bin/env python
"""What the losses on logits cost: each against its formula written down in a few lines of PyTorch.

    python benchmarks/losses.py                                   # all losses, shapes and dtypes
    python benchmarks/losses.py --losses dkd ckd --shapes 256x1000 --dtypes float32
    python benchmarks/losses.py --device cuda

One step is forward and backward of a loss module as training calls it, checks and reports included;
the plain formula computes in float32 as well. Both must give the same value and the same gradient
before they are timed, turn by turn, so that a slow moment of the machine hits both. Read the ratio,
not the milliseconds. Target: at most 1.1 in time and memory at the large shapes, where the
arithmetic counts; at 64x100 calling and checking does. Nothing fails when it is missed.

Writes ``losses.md`` and ``losses.csv`` (with the times themselves) under ``--out``.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import memory, timing  # noqa: E402
from benchmarks.summary import listed, markdown  # noqa: E402
from mmkd_plugin.losses import CKDLoss, DistillLoss, DKDLoss, IPWDLoss, KDLoss, LoCaLoss  # noqa: E402

OURS: dict[str, type[DistillLoss]] = dict(
    kd=KDLoss, dkd=DKDLoss, loca=LoCaLoss, ckd=CKDLoss, ipwd=IPWDLoss
)
SHAPES = ('64x100', '256x1000', '1024x1000', '4096x1000')
DTYPES = ('float32', 'float16', 'bfloat16')
FEATURES = 512  # of a ResNet-18
T = 4.0
TARGET = 1.1
MIN_SECONDS = 0.004  # of one timing; short steps are repeated within it


def plain_kd(s: Tensor, t: Tensor) -> Tensor:
    q, p = nnf.log_softmax(s.float() / T, 1), nnf.softmax(t.float() / T, 1)
    return nnf.kl_div(q, p, reduction='batchmean') * T**2


def plain_dkd(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    s, t = s.float() / T, t.float() / T
    hot = nnf.one_hot(labels, s.shape[1])
    sure_s, sure_t = ((nnf.softmax(z, 1) * hot).sum(1) for z in (s, t))
    binary_s, binary_t = (torch.stack([p, 1 - p], 1) for p in (sure_s, sure_t))
    target = nnf.kl_div(binary_s.log(), binary_t, reduction='batchmean')
    others_s, others_t = nnf.log_softmax(s - 1000 * hot, 1), nnf.softmax(t - 1000 * hot, 1)
    others = nnf.kl_div(others_s, others_t, reduction='batchmean')
    return (1.0 * target + 8.0 * others) * T**2


def plain_loca(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    p, index = nnf.softmax(t.float() / T, 1), labels[:, None]
    top, best = p.max(1, keepdim=True)
    p_label = p.gather(1, index)
    scale = torch.where(best != index, 0.9 / (1 - p_label + top), 1.0)
    p = (p * scale).scatter(1, index, 1 - scale * (1 - p_label))
    return nnf.kl_div(nnf.log_softmax(s.float() / T, 1), p, reduction='batchmean') * T**2


def plain_ckd(s: Tensor, t: Tensor) -> Tensor:
    similar = nnf.normalize(t.float(), dim=1) @ nnf.normalize(s.float(), dim=1).T
    return nnf.cross_entropy(similar / 1.0, torch.arange(len(s), device=s.device))


def plain_ipwd(s: Tensor, t: Tensor, labels: Tensor, features: Tensor, head: nn.Linear) -> Tensor:
    q, p = nnf.log_softmax(s.float() / T, 1), nnf.softmax(t.float() / T, 1)
    rows = nnf.kl_div(q, p, reduction='none').sum(1) * T**2
    z = head(features.float().detach())
    with torch.no_grad():
        misfit = []
        for logits in (s.float(), z):
            mean, std = logits.mean(1, keepdim=True), logits.std(1, correction=0, keepdim=True)
            misfit.append(nnf.cross_entropy((logits - mean) / std, labels, reduction='none'))
        weights = 1 + misfit[0] / misfit[1]
    return (weights * rows).mean() + nnf.cross_entropy(z, labels)


PLAIN: dict[str, Callable[..., Tensor]] = dict(
    kd=plain_kd, dkd=plain_dkd, loca=plain_loca, ckd=plain_ckd, ipwd=plain_ipwd
)


class Case:
    """A loss and its plain formula on the same random batch.

    Args:
        name: Key of ``OURS`` and ``PLAIN``.
        shape: Samples and classes.
        dtype: Of logits and features.
        device: Where to run.
    """

    def __init__(
        self, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        g = torch.Generator().manual_seed(0)
        n, classes = shape
        self.student, self.teacher = (
            (2 * torch.randn(n, classes, generator=g)).to(device, dtype) for _ in 'st'
        )
        self.student.requires_grad_()
        labels = torch.randint(classes, (n,), generator=g).to(device)
        features = torch.randn(n, FEATURES, generator=g).to(device, dtype)
        self.loss = OURS[name]()
        self.loss.connect(shape, shape, features.shape)
        self.loss.to(device)
        given = dict(labels=labels, features=features)
        self.given = {key: given[key] for key in self.loss.needs}
        self.formula = PLAIN[name]
        self.head = [self.loss.cls_head] if name == 'ipwd' else []

    def ours(self) -> Tensor:
        self.clear()
        value = self.loss(self.student, self.teacher, **self.given)
        return self._backward(sum(self.loss.auxiliary.values(), value))

    def plain(self) -> Tensor:
        self.clear()
        value = self.formula(self.student, self.teacher, *self.given.values(), *self.head)
        return self._backward(value)

    def clear(self) -> None:
        """Drops the gradients and what the loss keeps of its last forward."""
        for x in (self.student, *self.loss.parameters()):
            x.grad = None
        self.loss.report, self.loss.auxiliary = {}, {}

    @staticmethod
    def _backward(value: Tensor) -> Tensor:
        value.backward()
        return value.detach()

    def check(self) -> None:
        """Makes sure that both compute the same.

        Raises:
            RuntimeError: if value or gradient differ by more than rounding.
        """
        expected, wanted = self.plain(), self.student.grad
        value, grad = self.ours(), self.student.grad
        error = (grad.double() - wanted.double()).abs().max() / wanted.double().abs().max()
        if not torch.allclose(value, expected, rtol=1e-4) or error > 1e-2:
            raise RuntimeError(
                f'{type(self.loss).__name__} and the plain formula disagree: {value} and '
                f'{expected}, gradients by {error:.1e} of the largest.'
            )


def measure_time(case: Case, repeats: int) -> tuple[float, float, float]:
    """Medians over the rounds: seconds of ours and of plain, and their ratio within a round."""
    device = case.student.device
    for step in (case.ours, case.plain):
        timing.seconds(step, device, 2)
    number = max(1, int(MIN_SECONDS / timing.seconds(case.plain, device)))
    plain, ours = timing.turns((case.plain, case.ours), device, repeats, number=number)
    ratios = [a / b for a, b in zip(ours, plain)]
    return statistics.median(ours), statistics.median(plain), statistics.median(ratios)


def measure(
    name: str, shape: tuple[int, int], dtype: str, device: torch.device, repeats: int
) -> dict[str, Any]:
    """One row of the table."""
    case = Case(name, shape, getattr(torch, dtype), device)
    case.check()
    ours, plain, ratio = measure_time(case, repeats)
    heights = []
    for step in (case.ours, case.plain):
        case.clear()  # what a step frees of the one before would lower its height
        heights.append(memory.peak(step, device))
    ours_bytes, plain_bytes = heights
    return dict(
        loss=name,
        shape=f'{shape[0]}x{shape[1]}',
        dtype=dtype,
        ours_ms=1e3 * ours,
        plain_ms=1e3 * plain,
        time_ratio=ratio,
        ours_mib=ours_bytes / 2**20,
        plain_mib=plain_bytes / 2**20,
        memory_ratio=ours_bytes / plain_bytes,
    )


def to_markdown(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The ratios as a table, with the settings above it."""
    about_it = (
        'Forward and backward of each loss against its plain formula; a ratio is ours / plain.'
    )
    heads = ['loss', 'shape', 'dtype', 'ours ms', 'time ratio', 'ours MiB', 'memory ratio']
    lines = []
    for row in rows:
        times = f'{row["ours_ms"]:.2f}', f'{row["time_ratio"]:.2f}'
        sizes = f'{row["ours_mib"]:.1f}', f'{row["memory_ratio"]:.2f}'
        lines.append([row['loss'], row['shape'], row['dtype'], *times, *sizes])
    return f'{about_it}\n\n{listed(about)}\n\n{markdown(heads, lines, texts=3)}'


def write(rows: Sequence[dict[str, Any]], about: dict[str, Any], out: Path) -> None:
    """Writes ``losses.md`` and ``losses.csv``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / 'losses.md').write_text(to_markdown(rows, about))
    with (out / 'losses.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, [*rows[0], *about], lineterminator='\n')
        writer.writeheader()
        for row in rows:
            rounded = {k: f'{v:.4g}' if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({**rounded, **about})


def parse_shape(text: str) -> tuple[int, int]:
    """``'64x100'`` to (64, 100)."""
    try:
        samples, classes = (int(part) for part in text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no shape; write SAMPLESxCLASSES, for example 256x1000'
        ) from None
    if samples < 1 or classes < 2:
        raise argparse.ArgumentTypeError(f'{text!r} needs a sample and two classes at least')
    return samples, classes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = timing.make_parser(__doc__)
    parser.add_argument('--losses', nargs='+', choices=list(OURS), default=list(OURS))
    parser.add_argument(
        '--shapes', nargs='+', type=parse_shape, default=[parse_shape(s) for s in SHAPES]
    )
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument('--repeats', type=int, default=31, help='timings of each (default 31)')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(argv)
    device = timing.prepare(args)
    about = timing.settings(device, repeats=args.repeats)
    rows = []
    for name in args.losses:
        for shape in args.shapes:
            for dtype in args.dtypes:
                rows.append(measure(name, shape, dtype, device, args.repeats))
                row = rows[-1]
                print(
                    f'{name:<5}{row["shape"]:>10} {dtype:<9} time x{row["time_ratio"]:.2f}  '
                    f'memory x{row["memory_ratio"]:.2f}',
                    flush=True,
                )
    print('\n' + to_markdown(rows, about))
    write(rows, about, args.out)
    return rows


if __name__ == '__main__':
    main()
