"""A detector in miniature and Runner configs for it: milliseconds a step, everything real.

Nothing of mmkd_plugin is imported here, so that a process without it can rebuild the student.
"""

from __future__ import annotations

import copy

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as nnf


class _Backbone(BaseModule):
    """Two stages of strides 2 and 4, with norm and dropout, returned as a tuple."""

    def __init__(self, width: int, dropout: float, norm: bool) -> None:
        super().__init__()
        make_norm = nn.BatchNorm2d if norm else nn.Identity
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), make_norm(width))
        self.stage = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1), make_norm(2 * width), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        low = nnf.relu(self.stem(x))
        return low, self.dropout(self.stage(low))


class _Neck(BaseModule):
    def __init__(self, channels: list, out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, out, 1) for c in channels)

    def forward(self, xs):
        return tuple(conv(x) for conv, x in zip(self.convs, xs))


class _Head(BaseModule):
    """One predictor shared by the levels, so it is called once per level."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls = nn.Conv2d(channels, classes, 1)
        self.unused = nn.Conv2d(channels, 1, 1).requires_grad_(False)

    def forward(self, xs):
        return [self.cls(x) for x in xs]

    def loss(self, xs, targets):
        logits = [x.mean((2, 3)) for x in self(xs)]
        return dict(
            loss_cls=[nnf.cross_entropy(level, targets) for level in logits],
            acc=(logits[0].argmax(1) == targets).float().mean(),
        )


@MODELS.register_module()
class ToyDetector(BaseModel):
    """Backbone, neck and head with the interface of a detector."""

    def __init__(
        self,
        width=4,
        neck=6,
        classes=3,
        dropout=0.0,
        norm=True,
        data_preprocessor=None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor or dict(type='ImgDataPreprocessor'), init_cfg)
        self.backbone = _Backbone(width, dropout, norm)
        self.neck = _Neck([width, 2 * width], neck)
        self.bbox_head = _Head(neck, classes)

    def extract_feat(self, inputs):
        return self.neck(self.backbone(inputs))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.extract_feat(inputs)
        if mode == 'loss':
            targets = torch.tensor([s.label for s in data_samples], device=inputs.device)
            return self.bbox_head.loss(features, targets)
        logits = sum(x.mean((2, 3)) for x in self.bbox_head.forward(features))
        return logits if mode == 'tensor' else list(logits.softmax(-1))


class _ClassifierHead(BaseModule):
    """As in MMPreTrain: the last map is pooled, a linear layer follows."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.num_classes = classes
        self.hidden = nn.Linear(channels, 5)
        self.fc = nn.Linear(5, classes)

    def forward(self, maps):
        return self.fc(torch.relu(self.hidden(maps[-1].mean((2, 3)))))


@MODELS.register_module()
class ToyClassifier(BaseModel):
    """Takes one dict per batch or one sample per image."""

    def __init__(self, width=4, classes=3, dropout=0.0, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor or dict(type='ImgDataPreprocessor'), init_cfg)
        self.backbone = _Backbone(width, dropout, True)
        self.head = _ClassifierHead(2 * width, classes)

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.head(self.extract_feat(inputs))
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            return list(logits.softmax(-1))
        if isinstance(data_samples, dict):
            labels = data_samples['gt_label']
        else:
            labels = torch.tensor([s.label for s in data_samples], device=inputs.device)
        return dict(loss_cls=nnf.cross_entropy(logits, labels))


@DATASETS.register_module()
class ToyImages(torch.utils.data.Dataset):
    """Images of noise whose brightness tells the class; item i is always the same."""

    metainfo = dict(classes=('dark', 'grey', 'bright'))

    def __init__(self, length=8, size=16):
        self.length, self.size = length, size

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, self.size, self.size, generator=generator) + (index % 3)
        sample = BaseDataElement(metainfo=dict(img_shape=(self.size, self.size)))
        sample.label = index % 3
        return dict(inputs=image, data_samples=sample)


def toy_model(seed: int = 0, **kwargs) -> ToyDetector:
    """A toy detector with weights that depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ToyDetector(**kwargs)


def toy_classifier(seed: int = 0, **kwargs) -> ToyClassifier:
    """A toy classifier with weights that depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ToyClassifier(**kwargs)


def toy_batch(n: int = 4, size: int = 16, start: int = 0) -> tuple:
    """Inputs (N, 3, size, size) and data samples."""
    data = ToyImages(start + n, size)
    items = [data[i] for i in range(start, start + n)]
    return torch.stack([i['inputs'] for i in items]), [i['data_samples'] for i in items]


TEACHER = dict(type='ToyDetector', width=8, neck=6)
TERM = dict(loss=dict(type='GDDLoss'), student='neck.convs.*', weight=2.0, name='gdd')


def hook_config(*terms, **kwargs) -> dict:
    """A DistillHook with a random toy teacher; ``terms`` default to GDD on the neck."""
    kwargs.setdefault('teacher', dict(config=copy.deepcopy(TEACHER), allow_random=True))
    return dict(
        type='mmkd_plugin.DistillHook',
        terms=list(terms) or [dict(TERM)],
        probe_size=(16, 16),
        **kwargs,
    )


def runner_config(
    work_dir, *hooks, max_iters: int = 4, batch_size: int = 2, length: int = 8, **overrides
) -> Config:
    """A complete Runner config that trains the toy detector by iterations on the CPU."""
    config = dict(
        default_scope='mmengine',
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
        model=dict(type='ToyDetector'),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dict(type='ToyImages', length=length),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            batch_size=batch_size,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3)],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=list(hooks),
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=7),
        log_level='WARNING',
    )
    config.update(overrides)
    return Config(config)


def by_epoch(until: int = 3) -> dict:
    """Settings for :func:`runner_config` of a loop that counts epochs, of 4 iterations each."""
    loader = dict(
        dataset=dict(type='ToyImages', length=8),
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_size=2,
        num_workers=0,
        collate_fn=dict(type='pseudo_collate'),
    )
    return dict(train_cfg=dict(by_epoch=True, max_epochs=until), train_dataloader=loader)


def train(config: Config, *hooks):
    """Builds a Runner with a name of its own, adds ``hooks``, trains, and returns it."""
    from mmengine.runner import Runner

    train.count = getattr(train, 'count', 0) + 1
    config = copy.deepcopy(config)
    config.experiment_name = f'toy_{train.count}_{id(config)}'
    runner = Runner.from_cfg(config)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner
