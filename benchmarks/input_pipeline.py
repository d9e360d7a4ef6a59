#!/usr/bin/env python
"""The share of a training step that loading and preprocessing take, for small networks.

    python benchmarks/input_pipeline.py                    # the CPU
    python benchmarks/input_pipeline.py --device cuda
    python benchmarks/input_pipeline.py --threads 1 --out benchmarks/results/input_pipeline.md

A batch of 64 images is cut out of a CIFAR-like array in memory, augmented, normalised and trained
on. Timed are

* load: the loader's next batch (no workers: they only pay where images are decoded),
* preprocess: copy to the device, crop, flip, normalise, mixup; waited for on an accelerator, though
  in training it overlaps with the host,
* step: a whole training step, load and preprocess included.

Target: load + preprocess < 5 % of the step. It is printed; nothing fails when it is missed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import timing  # noqa: E402
from benchmarks.summary import markdown  # noqa: E402

TARGET = 5.0
MILD = [dict(type='BatchRandomCrop', size=32, padding=4), dict(type='BatchRandomFlip')]
HEAVY = [dict(type='BatchRandomResizedCrop', size=32), dict(type='BatchRandomFlip')]
PIPELINES = {
    'crop + flip': dict(batch_augments=MILD),
    'inception crop + flip + mixup': dict(batch_augments=HEAVY, mixup=1.0),
}
NETWORKS = {'resnet8': 8, 'resnet20': 20}


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds."""

    load: float
    preprocess: float
    step: float

    @property
    def share(self) -> float:
        """Per cent of the step that the input takes."""
        return 100 * (self.load + self.preprocess) / self.step


class Training:
    """A network, its optimizer and an endless stream of batches.

    Args:
        depth: of the CIFAR ResNet.
        pipeline: arguments of ``ClsDataPreprocessor``.
        device: where to train.
        images: in the array.
        batch: images in a batch.
    """

    def __init__(
        self, depth: int, pipeline: dict, device: torch.device, images: int, batch: int
    ) -> None:
        from mmengine.optim import build_optim_wrapper
        from mmengine.runner import Runner

        from mmkd_plugin.datasets import ArrayDataset
        from mmkd_plugin.registry import MODELS

        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (images, 3, 32, 32), generator=generator).to(torch.uint8)
        labels = torch.randint(100, (images,), generator=generator)
        self.device = device
        self.loader = Runner.build_dataloader(
            dict(
                dataset=ArrayDataset(pixels, labels, [str(i) for i in range(100)]),
                sampler=dict(type='DefaultSampler', shuffle=True),
                batch_size=batch,
                num_workers=0,
                drop_last=True,
                collate_fn=dict(type='mmkd_plugin.whole_batch'),
            ),
            seed=0,
        )
        preprocessor = dict(
            type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, **pipeline
        )
        self.model = MODELS.build(
            dict(
                type='ImageClassifier',
                data_preprocessor=preprocessor,
                backbone=dict(type='CIFARResNet', depth=depth),
                head=dict(type='LinearHead', num_classes=100),
            )
        ).to(device)
        self.model.train()
        optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.optim = build_optim_wrapper(self.model, dict(optimizer=optimizer))
        self.batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def time_steps(self, count: int) -> float:
        """Seconds per whole step; the device is waited for at the end only."""

        def step() -> None:
            self.model.train_step(next(self.batches), self.optim)

        return timing.seconds(step, self.device, count)

    def time_input(self) -> tuple[float, float]:
        """Seconds of loading and of preprocessing one batch."""
        loaded: list[Any] = []
        load = timing.seconds(lambda: loaded.append(next(self.batches)), self.device)
        preprocess = self.model.data_preprocessor
        return load, timing.seconds(lambda: preprocess(loaded[0], True), self.device)


def measure(training: Training, rounds: int, steps: int) -> Timing:
    """Alternates whole steps and input alone, so that a busy machine slows both."""
    training.time_steps(3)
    whole, load, preprocess = [], [], []
    for _ in range(rounds):
        whole.append(training.time_steps(steps))
        for _ in range(steps):
            loading, preparing = training.time_input()
            load.append(loading)
            preprocess.append(preparing)
    return Timing(*(1e3 * statistics.median(seconds) for seconds in (load, preprocess, whole)))


def table(rows: dict[tuple[str, str], Timing], header: str) -> str:
    """The result as Markdown."""
    heads = ['network', 'pipeline', 'load ms', 'preprocess ms', 'step ms', 'input % of step']
    lines = [
        [*names, f'{t.load:.2f}', f'{t.preprocess:.2f}', f'{t.step:.1f}', f'{t.share:.1f}']
        for names, t in rows.items()
    ]
    met = sum(t.share < TARGET for t in rows.values())
    verdict = f'Target below {TARGET:.0f} %: met in {met} of {len(rows)}.'
    return f'{header}\n\n{markdown(heads, lines, texts=2)}\n{verdict}'


def main(argv: list[str] | None = None) -> None:
    parser = timing.make_parser(__doc__, device='cpu')
    parser.add_argument('--networks', nargs='+', default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--images', type=int, default=50000, help='images in the array')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=10, help='steps in a round')
    parser.add_argument('--out', type=Path, help='writes the table there, as Markdown')
    args = parser.parse_args(argv)
    device = timing.prepare(args)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
    rows = {}
    for network in args.networks:
        for label, pipeline in PIPELINES.items():
            training = Training(NETWORKS[network], pipeline, device, args.images, args.batch)
            rows[network, label] = measure(training, args.rounds, args.steps)
    header = (
        f'{name}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}, batch '
        f'{args.batch} of 32x32 out of {args.images:,} images; medians.'
    )
    text = table(rows, header)
    print(text)
    if args.out:
        title = '# Loading and preprocessing within a training step\n\n'
        command = '`python benchmarks/input_pipeline.py'
        options = sys.argv[1:] if argv is None else argv
        command = ' '.join([command, *options]) + '`\n\n'
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(title + command + text + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
