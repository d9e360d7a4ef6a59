#!/usr/bin/env python
"""What distillation costs: a distilled training step against the sum of its parts.

    python benchmarks/overhead.py                                        # the demo pair on the CPU
    python benchmarks/overhead.py --pair resnet56-resnet20 --loss IPWDLoss --threads 1
    python benchmarks/overhead.py --pair retinanet-r50-x101 --device cuda --amp float16
    python benchmarks/overhead.py --peer mmrazor                         # beside its two classes

Five steps are timed in one run, turn by turn, and their medians compared:

* student step: forward, backward and optimizer of the student alone,
* eager teacher: the model's forward as deep as the taps need, as it is,
* teacher: the same as the distiller runs it, with norms folded and on CPUs channels-last,
* terms: forward and backward of the losses on recorded feature maps, and the optimizer for their
  connectors,
* distilled step: the whole.

Targets: distilled step <= 1.05 x (student step + teacher + terms); its peak memory <= 1.05 x
(student step + teacher weights, those of its form included, + the teacher's tapped maps + what the
terms alone take). The ratios are printed; nothing fails when they are missed. Weights are random
and the learning rate is 0: neither changes the work that is done.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks import memory, peers, timing  # noqa: E402
from benchmarks.summary import listed  # noqa: E402
from mmkd_plugin.cli.runs import write_json  # noqa: E402
from mmkd_plugin.taps import Recorder  # noqa: E402

TARGET = 1.05


@dataclass(frozen=True)
class Pair:
    """Student, teacher, where they are tapped, and the batch: (height, width) and images."""

    student: str
    teacher: str
    tap: str
    size: tuple[int, int]
    batch: int
    loss: str = 'GDDLoss'


PAIRS = {
    'demo': Pair(
        str(ROOT / 'configs/demo/gfl_r18-quarter_digits.py'),
        str(ROOT / 'configs/demo/gfl_r18_digits.py'),
        'neck.fpn_convs.*.conv',
        (96, 96),
        16,
    ),
    'bccd': Pair(
        str(ROOT / 'configs/detection/bccd/gfl_r18-quarter_bccd.py'),
        str(ROOT / 'configs/detection/bccd/gfl_r18_bccd.py'),
        'neck.fpn_convs.*.conv',
        (112, 144),  # 144x108, padded to multiples of 16
        8,
    ),
    'retinanet-r50-x101': Pair(
        'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
        'mmdet::retinanet/retinanet_x101-64x4d_fpn_2x_coco.py',
        'neck.fpn_convs.*.conv',
        (800, 1344),
        2,
    ),
    'resnet56-resnet20': Pair(
        str(ROOT / 'configs/classification/cifar100/resnet20.py'),
        str(ROOT / 'configs/classification/cifar100/resnet56.py'),
        'cls_logits',
        (32, 32),
        64,
        'KDLoss',
    ),
    'resnet32x4-shufflenet_v1': Pair(
        str(ROOT / 'configs/classification/cifar100/shufflenet_v1.py'),
        str(ROOT / 'configs/classification/cifar100/resnet32x4.py'),
        'cls_logits',
        (32, 32),
        64,
        'KDLoss',
    ),
    'resnet34-resnet18': Pair(
        str(ROOT / 'configs/classification/imagenet/resnet18_imagenet.py'),
        str(ROOT / 'configs/classification/imagenet/resnet34_imagenet.py'),
        'cls_logits',
        (224, 224),
        32,
        'KDLoss',
    ),
}


def labelled_batch(
    size: tuple[int, int], batch: int, classes: int, device: torch.device
) -> tuple[Tensor, dict]:
    """A preprocessed batch of noise for a classifier."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (batch,), generator=generator).to(device)
    return torch.randn(batch, 3, *size, generator=generator).to(device), dict(gt_label=labels)


def boxed_batch(
    size: tuple[int, int], batch: int, classes: int, device: torch.device
) -> tuple[Tensor, list]:
    """A preprocessed batch of noise with six random boxes an image."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    height, width = size
    samples = []
    for _ in range(batch):
        corner = torch.rand(6, 2, generator=generator) * 0.6
        extent = 0.1 + torch.rand(6, 2, generator=generator) * 0.3
        scale = torch.tensor([width, height, width, height])
        sample = DetDataSample(
            metainfo=dict(
                img_shape=size,
                ori_shape=size,
                pad_shape=size,
                batch_input_shape=size,
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], 1) * scale,
            labels=torch.randint(classes, (6,), generator=generator),
        )
        samples.append(sample.to(device))
    return torch.randn(batch, 3, height, width, generator=generator).to(device), samples


class Parts:
    """The four steps as functions without arguments.

    Args:
        student: Config of the student.
        teacher: Config of the teacher.
        terms: Terms as ``mmkd_plugin.attach`` takes them.
        size: Height and width of the batch.
        batch: Images in it.
        device: Where to run.
        amp: Autocast dtype, or None.
    """

    NAMES = ('student', 'eager', 'teacher', 'terms', 'distilled')

    def __init__(
        self,
        student: str,
        teacher: str,
        terms: list[dict[str, Any]],
        size: tuple[int, int],
        batch: int,
        device: torch.device,
        amp: torch.dtype | None = None,
    ) -> None:
        import mmkd_plugin
        from mmkd_plugin.model_config import load_model_config
        from mmkd_plugin.teacher import build_model

        self.device, self.amp = device, amp
        config, theirs = load_model_config(student), load_model_config(teacher)
        self.plain = build_model(config).to(device).train()
        self.build = lambda: (self._copy(build_model(config)), build_model(theirs).to(device))
        self.model, network = self.build()
        self.distiller = mmkd_plugin.attach(
            self.model, teacher=network, terms=terms, probe_size=size
        )
        self.loss = terms[0]['loss']
        self.optimizer_type = config.get('optim_wrapper', {}).get('optimizer', dict(type='SGD'))[
            'type'
        ]
        self.plain_optimizer = self._optimizer(self.plain)
        self.optimizer = self._optimizer(self.model)
        self.terms_optimizer = self._optimizer(self.distiller)
        head, make = (
            (config.model.bbox_head, boxed_batch)
            if 'bbox_head' in config.model
            else (config.model.head, labelled_batch)
        )
        self.inputs, self.samples = make(size, batch, head.num_classes, device)
        self._student, self._teacher = self._record()

    def _copy(self, student: nn.Module) -> nn.Module:
        student.to(self.device).train().load_state_dict(self.plain.state_dict())
        return student

    def peers(self) -> dict[str, Callable[[], None]]:
        """A step of each class of mmrazor that distils the same."""
        (term,) = self.distiller.terms
        sides = [getattr(view, 'points', []) for view in (term.student, term.teacher)]
        paths = [(own.path, other.path) for own, other in zip(*sides)]
        models = peers.build_mmrazor(self.build, self.loss, paths)
        steps = {}
        for name, model in models.items():
            model.to(self.device).train()
            model(self.inputs, self.samples, mode='loss')  # makes connectors
            steps[name] = partial(self._step, model, self._optimizer(model))
        return steps

    @property
    def teacher_maps(self) -> list[Tensor]:
        """What the terms read of the teacher."""
        return _tensors(self._teacher)

    @property
    def form_bytes(self) -> int:
        """What the form in which the teacher runs takes beside the model."""
        form = self.distiller.teacher._form
        return sum(t.numel() * t.element_size() for t in form.held()) if form else 0

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer | None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        settings = dict(momentum=0.9) if self.optimizer_type == 'SGD' else {}
        return (
            getattr(torch.optim, self.optimizer_type)(parameters, lr=0.0, **settings)
            if parameters
            else None
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def _record(self) -> tuple[Recorder, Recorder]:
        """What the terms see in a distilled step, as copies; the student's are leaves."""
        keep, self.distiller._clear = self.distiller._clear, lambda: None
        self.distilled()
        self.distiller._clear = keep
        recorders = self.distiller.recorder, self.distiller.teacher.recorder
        frozen = tuple(_frozen(r, leaf) for r, leaf in zip(recorders, (True, False)))
        self.distiller._clear()
        return frozen

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with self._autocast():
            losses = model(self.inputs, self.samples, mode='loss')
            total, _ = model.parse_losses(losses)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    def student(self) -> None:
        self._step(self.plain, self.plain_optimizer)

    def distilled(self) -> None:
        self._step(self.model, self.optimizer)

    def eager(self) -> None:
        """The teacher without its form."""
        handle = self.distiller.teacher
        form, handle._form = handle._form, None
        try:
            self.teacher()
        finally:
            handle._form = form

    def teacher(self) -> None:
        with self._autocast():
            self.distiller.teacher.run(self.inputs, self.samples)
        self.distiller.teacher.recorder.clear()

    def terms(self) -> None:
        with self._autocast():
            total = sum(
                value
                for term in self.distiller.terms
                for key, value in term.compute(self._student, self._teacher, self.samples)[
                    0
                ].items()
                if 'loss' in key
            )
        total.backward()
        for tensor in _tensors(self._student):
            tensor.grad = None
        if self.terms_optimizer:
            self.terms_optimizer.step()
            self.terms_optimizer.zero_grad()


def _frozen(recorder: Recorder, leaf: bool) -> Recorder:
    """A recorder that holds copies of what ``recorder`` holds now."""
    copies: dict[int, Tensor] = {}  # a tensor seen at two places stays one

    def copied(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in copies:
            copies[id(x)] = x.detach().clone().requires_grad_(leaf and x.is_floating_point())
        return copies[id(x)]

    frozen = copy.copy(recorder)
    frozen._listeners = {
        key: replace(listener, **tree_map(copied, dict(calls=listener.calls, raw=listener.raw)))
        for key, listener in recorder._listeners.items()
    }
    return frozen


def _tensors(recorder: Recorder) -> list[Tensor]:
    return [x for listener in recorder._listeners.values() for call in listener.calls for x in call]


def measure_time(
    parts: Parts, iters: int, warmup: int, others: dict[str, Callable[[], None]] | None = None
) -> dict[str, list[float]]:
    """Seconds of every step in each round, and of others'."""
    steps = {**{name: getattr(parts, name) for name in Parts.NAMES}, **(others or {})}
    return dict(zip(steps, timing.turns(list(steps.values()), parts.device, iters, warmup)))


def report_time(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratios of the distilled step to what its parts take by themselves: with the
    teacher as it runs, and with the model as it is."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    rest = medians['student'] + medians['terms']
    parts, eager = (rest + medians[name] for name in ('teacher', 'eager'))
    whole = medians['distilled']
    beside = {name: whole / medians[name] for name in medians if name not in Parts.NAMES}
    return dict(
        medians=medians, sum=parts, ratio=whole / parts, eager_ratio=whole / eager, peers=beside
    )


def report_memory(parts: Parts) -> dict[str, Any]:
    """Peak of the distilled step against the budget, in bytes.

    A peak is what lies there before the step (weights, optimizer state) and what the step adds at
    its height; see ``memory.py`` for how that is seen.
    """
    steps = {name: memory.peak(getattr(parts, name), parts.device) for name in Parts.NAMES}
    student = memory.held(parts.plain, parts.plain_optimizer) + steps['student']
    teacher = memory.held(parts.distiller.teacher.model) + parts.form_bytes
    maps = sum(t.numel() * t.element_size() for t in parts.teacher_maps)
    connectors = memory.held(parts.distiller, parts.terms_optimizer)
    terms = connectors + steps['terms']
    measured = memory.held(parts.model, parts.optimizer) + teacher + steps['distilled']
    budget = student + teacher + maps + terms
    return dict(
        student=student,
        teacher_weights=teacher,
        teacher_maps=maps,
        terms=terms,
        sum=budget,
        distilled=measured,
        teacher_forward=steps['teacher'],
        ratio=measured / budget,
    )


def show(result: dict[str, Any]) -> str:
    """The two tables."""
    times, sizes = result['time'], result['memory']
    lines = [f'{"step":<40}{"median ms":>12}']
    titles = dict(
        student='student step',
        eager='teacher as it is',
        teacher='teacher as it runs, to the deepest tap',
        terms='loss terms',
        distilled='distilled step',
    )
    for name in Parts.NAMES[:-1]:
        lines.append(f'{titles[name]:<40}{1e3 * times["medians"][name]:>12.2f}')
    lines.append(f'{"student + teacher as it runs + terms":<40}{1e3 * times["sum"]:>12.2f}')
    lines.append(f'{titles["distilled"]:<40}{1e3 * times["medians"]["distilled"]:>12.2f}')
    lines.append(f'distilled / sum = {times["ratio"]:.3f} (target <= {TARGET})')
    lines.append(f'the same with the teacher as it is = {times["eager_ratio"]:.3f}')
    for name, ratio in times['peers'].items():
        took = 1e3 * times['medians'][name]
        lines.append(f"distilled / mmrazor's {name} ({took:.2f} ms) = {ratio:.3f}")
    lines += ['', f'{"peak memory":<40}{"MiB":>12}']
    for key, title in (
        ('student', 'student step'),
        ('teacher_weights', 'teacher weights'),
        ('teacher_maps', "teacher's tapped maps"),
        ('terms', 'loss terms and connectors'),
        ('sum', 'sum'),
        ('distilled', 'distilled step'),
    ):
        lines.append(f'{title:<40}{sizes[key] / 2**20:>12.2f}')
    lines.append(f'distilled / sum = {sizes["ratio"]:.3f} (target <= {TARGET})')
    height = sizes['teacher_forward'] / 2**20
    lines.append(f"(the teacher's forward alone adds {height:.2f} MiB at its height)")
    return '\n'.join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = timing.make_parser(__doc__)
    parser.add_argument('--pair', choices=list(PAIRS), default='demo')
    parser.add_argument('--student', help="config, instead of the pair's")
    parser.add_argument('--teacher', help="config, instead of the pair's")
    parser.add_argument('--loss', help="the term's loss, instead of the pair's")
    parser.add_argument('--tap', help="the term's tap, instead of the pair's")
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help='of the images'
    )
    parser.add_argument('--batch', type=int, help='images in the batch')
    parser.add_argument('--iters', type=int, default=30, help='rounds that count (default 30)')
    parser.add_argument('--warmup', type=int, default=5, help='rounds before them (default 5)')
    parser.add_argument('--peer', choices=peers.NAMES, help='also time its steps, where installed')
    parser.add_argument('--amp', choices=['float16', 'bfloat16'], help='autocast to this dtype')
    parser.add_argument('--json', type=Path, help='write the numbers to this file too')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    pair = PAIRS[args.pair]
    device, loss = timing.prepare(args), args.loss or pair.loss
    settings = dict(
        student=args.student or pair.student,
        teacher=args.teacher or pair.teacher,
        terms=[dict(loss=dict(type=loss), student=args.tap or pair.tap, weight=1.0, name='term')],
        size=tuple(args.size or pair.size),
        batch=args.batch or pair.batch,
    )
    parts = Parts(**settings, device=device, amp=getattr(torch, args.amp) if args.amp else None)
    times = measure_time(parts, args.iters, args.warmup, parts.peers() if args.peer else None)
    about = timing.settings(
        device,
        amp=args.amp,
        iters=args.iters,
        pair=args.pair,
        loss=loss,
        size=settings['size'],
        batch=settings['batch'],
    )
    result = dict(settings=about, time=report_time(times), memory=report_memory(parts))
    print(listed(about) + '\n')
    print(show(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, result)
    return result


if __name__ == '__main__':
    main()
