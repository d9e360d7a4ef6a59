"""A small classifier with everything random about it, and Runner configs for it."""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as nnf

from mmkd_plugin.datasets import ArrayDataset

AUGMENT = [dict(type='BatchRandomCrop', size=8, padding=1), dict(type='BatchRandomFlip')]


def preprocessor(**changes) -> dict:
    return dict(type='ClsDataPreprocessor', mean=[120.0], std=[60.0], **changes)


@DATASETS.register_module(force=True)
class NoiseImages(ArrayDataset):
    """Fixed noise, 3 classes."""

    def __init__(self, count: int = 20, side: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, side, side), generator=generator)
        super().__init__(images.to(torch.uint8), torch.arange(count) % 3, ['a', 'b', 'c'])


@DATASETS.register_module(force=True)
class JitteredImages(NoiseImages):
    """Augmented where they are loaded, such as in a worker, from all three generators."""

    def __getitems__(self, indices):
        batch = super().__getitems__(indices)
        shift = torch.randint(40, ()) + random.randint(0, 40) + np.random.randint(40)
        batch['inputs'] = batch['inputs'] // 2 + shift.to(torch.uint8)
        return batch


@MODELS.register_module(force=True)
class NoisyClassifier(BaseModel):
    """Convolution, BatchNorm (or GroupNorm), dropout, linear layer."""

    def __init__(self, norm='batch', dropout=0.5, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm == 'batch' else nn.GroupNorm(2, 6)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(6, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.fc(self.dropout(self.norm(self.conv(inputs)).relu().mean((2, 3))))
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            return [dict(pred_score=logits.softmax(1), gt_label=data_samples['gt_label'])]
        loss = nnf.cross_entropy(logits, data_samples['gt_label'], reduction='none')
        if 'mixed_lam' in data_samples:
            other = nnf.cross_entropy(logits, data_samples['mixed_label'], reduction='none')
            loss = data_samples['mixed_lam'] * loss + (1 - data_samples['mixed_lam']) * other
        return dict(loss_cls=loss.mean())


def run_config(work_dir, hooks=(), by_epoch=True, until=4, val=False, every=1, **changes) -> Config:
    """A Runner config; ``until`` counts epochs or iterations, ``every`` is the save interval."""
    train_cfg = dict(by_epoch=True, max_epochs=until, val_interval=1)
    if not by_epoch:
        train_cfg = dict(by_epoch=False, max_iters=until, val_interval=2)
    loader = dict(
        batch_size=8,
        num_workers=0,
        dataset=dict(type='NoiseImages'),
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
        collate_fn=dict(type='whole_batch'),
    )
    evaluation = {}
    if val:
        val_loader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False))
        evaluation = dict(
            val_dataloader=val_loader,
            val_cfg=dict(),
            val_evaluator=dict(type='ClsAccuracy', topk=(1,)),
        )
    config = dict(
        default_scope='mmkd_plugin',
        work_dir=str(work_dir),
        experiment_name=f'run_{id(train_cfg)}_{torch.randint(10**9, ()).item()}',
        model=dict(
            type='NoisyClassifier',
            data_preprocessor=preprocessor(batch_augments=AUGMENT, mixup=1.0),
        ),
        train_dataloader=loader,
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1000),
            checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=every),
        ),
        custom_hooks=list(hooks),
        randomness=dict(seed=3),
        log_level='ERROR',
        **evaluation,
    )
    config.update(changes)
    return Config(config)


def trained(*args, **kwargs) -> Runner:
    """Trains by :func:`run_config`."""
    runner = Runner.from_cfg(run_config(*args, **kwargs))
    runner.train()
    return runner


def weights(runner: Runner) -> dict:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def parameters(runner: Runner) -> dict:
    return {name: value.detach().clone() for name, value in runner.model.named_parameters()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
