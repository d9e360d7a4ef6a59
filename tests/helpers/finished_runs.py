"""Work dirs as finished runs leave them, of models that need no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import METRICS, MODELS
from mmengine.structures import InstanceData, PixelData
from torch import nn


class _Oracle(BaseModel):
    """Knows the truth, and is wrong by as much as its weights say."""

    def __init__(self, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.noise = nn.Parameter(torch.tensor(0.0))
        self.register_buffer('seed', torch.tensor(0))

    def random(self, sample) -> torch.Generator:
        place = crc32(Path(sample.img_path).name.encode()) % 1000
        return torch.Generator().manual_seed(1000 * int(self.seed) + place)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return [self.answer(sample) for sample in data_samples]


@MODELS.register_module(force=True)
class OracleDetector(_Oracle):
    """Moves boxes, exchanges classes, misses objects and invents some."""

    def answer(self, sample):
        random, noise = self.random(sample), float(self.noise)
        truth = sample.gt_instances
        boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
        count = len(boxes)
        kept = torch.rand(count, generator=random) > noise / 4
        moved = boxes + 12 * noise * torch.randn(count, 4, generator=random)
        other = truth.labels.roll(1)
        wrong = torch.rand(count, generator=random) < noise / 2
        labels = torch.where(wrong, other, truth.labels)
        scores = 0.95 - 0.5 * noise * torch.rand(count, generator=random)
        corner = 60 * torch.rand(2, 2, generator=random)
        invented = torch.cat([corner, corner + 20], 1)
        sample.pred_instances = InstanceData(
            bboxes=torch.cat([moved[kept], invented]),
            labels=torch.cat([labels[kept], torch.zeros(2).long()]),
            scores=torch.cat([scores[kept], 0.2 + noise * torch.rand(2, generator=random)]),
        )  # fmt: skip
        if 'masks' in truth:
            masks = torch.from_numpy(truth.masks.to_ndarray()).bool()
            size = masks.shape[-2:]
            extra = torch.zeros(2, *size, dtype=torch.bool)
            extra[:, :10, :10] = True
            shift = int(6 * noise)
            sample.pred_instances.masks = torch.cat([masks.roll(shift, -1)[kept], extra])
        return sample


@MODELS.register_module(force=True)
class OneClassMore(OracleDetector):
    """Predicts a class that the data set does not have."""

    def answer(self, sample):
        super().answer(sample).pred_instances.labels[:] = 10
        return sample


@MODELS.register_module(force=True)
class OracleSegmenter(_Oracle):
    """Puts a share of the pixels into another class."""

    def answer(self, sample):
        random = self.random(sample)
        truth = sample.gt_sem_seg.data.long()
        wrong = torch.rand(truth.shape, generator=random) < float(self.noise)
        other = torch.randint(0, 11, truth.shape, generator=random)
        sample.pred_sem_seg = PixelData(data=torch.where(wrong, other, truth))
        return sample


def detection_config(root: Path, masks: bool = False) -> Config:
    """The digits' validation set for an oracle."""
    loads = dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(96, 96), keep_ratio=True),
        loads,
        dict(type='PackDetInputs', meta_keys=meta),
    ]
    loader = _loader(
        dict(
            type='mmkd_plugin.DigitsCocoDataset',
            data_root=str(root),
            digits=dict(image_size=128, train=24, val=12, seed=0),
            ann_file='annotations/val.json',
            data_prefix=dict(img='val/'),
            test_mode=True,
            pipeline=pipeline,
        )
    )
    kinds = ['bbox', 'segm'] if masks else 'bbox'
    evaluator = dict(type='CocoMetric', ann_file=f'{root}/annotations/val.json', metric=kinds)
    preprocessor = dict(type='DetDataPreprocessor')
    return _config('mmdet', 'OracleDetector', preprocessor, loader, evaluator)


def segmentation_config(root: Path) -> Config:
    """The digits' validation set for an oracle."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    loader = _loader(
        dict(
            type='mmkd_plugin.DigitsSegDataset',
            data_root=str(root),
            digits=dict(image_size=128, train=24, val=12, seed=0),
            data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
            pipeline=pipeline,
        )
    )
    evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    preprocessor = dict(type='SegDataPreProcessor', size=(128, 128))
    return _config('mmseg', 'OracleSegmenter', preprocessor, loader, evaluator)


def classification_config(count: int = 60) -> Config:
    """The digits of scikit-learn for a linear classifier."""
    loader = dict(
        batch_size=30,
        num_workers=0,
        dataset=dict(type='SklearnDigits', split='val', num_samples=count),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='whole_batch'),
    )
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='CIFARResNet', depth=8),
        head=dict(type='LinearHead', num_classes=10),
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[120.0], std=[60.0]),
    )
    return Config(
        dict(
            default_scope='mmkd_plugin',
            model=model,
            val_dataloader=loader,
            val_cfg=dict(),
            val_evaluator=dict(type='ClsAccuracy', topk=(1, 5)),
            train_cfg=dict(by_epoch=True, max_epochs=2),
        )
    )


def _loader(dataset: dict) -> dict:
    return dict(
        batch_size=4,
        num_workers=0,
        dataset=dataset,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )


def _config(scope: str, model: str, preprocessor: dict, loader: dict, evaluator: dict) -> Config:
    return Config(
        dict(
            default_scope=scope,
            custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
            model=dict(type=f'mmengine.{model}', data_preprocessor=preprocessor),
            val_dataloader=loader,
            val_cfg=dict(),
            val_evaluator=evaluator,
            train_cfg=dict(by_epoch=True, max_epochs=2),
        )
    )


def oracle_state(noise: float, seed: int = 0) -> dict:
    """Weights of an oracle."""
    return dict(noise=torch.tensor(noise), seed=torch.tensor(seed))


def classifier_state(seed: int, epochs: int = 0) -> dict:
    """Weights of the classifier, fitted for some steps to the images it is tested on."""
    from mmkd_plugin.teacher import build_model

    torch.manual_seed(seed)
    model: Any = build_model(classification_config())
    loader = classification_config().val_dataloader.dataset
    from mmkd_plugin.datasets import SklearnDigits

    data = SklearnDigits(split=loader.split, num_samples=loader.num_samples)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images = (data.images.float() - 120) / 60
    for _ in range(epochs):
        loss = nn.functional.cross_entropy(model(images, mode='tensor'), data.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def work_dir(
    folder: Path, config: Config, state: dict, seed: int | None = 0, epoch: int = 2
) -> Path:
    """Writes what a run leaves: config, checkpoint, the note of the last one, the scalars."""
    logs = folder / '20010101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    config.dump(logs / 'config.py')
    config.dump(folder / 'config.py')
    meta = dict(epoch=epoch, iter=10 * epoch, experiment_name='x')
    if seed is not None:
        meta['seed'] = seed
    file = folder / f'epoch_{epoch}.pth'
    torch.save(dict(meta=meta, state_dict=state), file)
    (folder / 'last_checkpoint').write_text(str(file))
    lines = [
        dict(loss=3.0 - e, loss_cls=1.0, time=0.5, epoch=e, iter=10 * e, step=10 * e)
        for e in range(1, epoch + 1)
    ]
    lines.append({'coco/bbox_mAP': 0.5, 'accuracy/top1': 50.0, 'mIoU': 50.0, 'step': epoch})
    (logs / 'scalars.json').write_text('\n'.join(json.dumps(line) for line in lines) + '\n')
    return folder


@METRICS.register_module(force=True)
class RowF1(BaseMetric):
    """Macro F1, which this package does not know: it keeps an array of two classes an image."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            told, label = sample['pred_label'].reshape(-1), sample['gt_label'].reshape(-1)
            self.results += list(torch.stack([told, label], 1).numpy())

    def compute_metrics(self, results):
        assert all(isinstance(row, np.ndarray) for row in results)
        told, label = np.array(results).T
        scores = []
        for number in np.union1d(told, label):
            both = ((told == number) & (label == number)).sum()
            scores.append(2 * both / ((told == number).sum() + (label == number).sum()))
        return dict(f1=100 * float(np.mean(scores)))
