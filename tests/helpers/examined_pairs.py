"""Pairs that really learn something, in seconds: coloured shapes to classify or to detect.

Half of the classes differ by colour alone, red against blue, so that an exchange of channels shows.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmkd_plugin.datasets import ArrayDataset
from mmkd_plugin.diagnosis.examine import Options, examine
from mmkd_plugin.diagnosis.findings import Report
from mmkd_plugin.registry import DATASETS
from mmkd_plugin.teacher import build_model

SHAPES = ('bar', 'pole', 'box', 'cross')
COLOURS = {'red': (220, 60, 40), 'blue': (40, 60, 220)}  # red first
CLASSES = tuple(f'{colour} {shape}' for shape in SHAPES for colour in COLOURS)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def draw(image: np.ndarray, label: int, corner: tuple[int, int], side: int) -> None:
    """Draws an object of a class into an RGB image."""
    colour = list(COLOURS.values())[label % 2]
    shape, (x, y), third = SHAPES[label // 2], corner, max(side // 3, 2)
    middle = (side - third) // 2
    if shape in ('bar', 'cross'):
        image[y + middle : y + middle + third, x : x + side] = colour
    if shape in ('pole', 'cross'):
        image[y : y + side, x + middle : x + middle + third] = colour
    if shape == 'box':
        image[y : y + side, x : x + side] = colour


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(60, 140, (size, size, 3)).astype(np.uint8)


# -- images of one object ----------------------------------------------------------------------


@DATASETS.register_module(force=True)
class OneShape(ArrayDataset):
    """Images of 16x16 with one shape each."""

    def __init__(self, count: int = 200, seed: int = 0, classes=CLASSES, noise: int = 60) -> None:
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % len(CLASSES)
        images = []
        for label in labels:
            image = background(rng, 16)
            draw(image, label, tuple(rng.integers(0, 5, 2)), int(rng.integers(9, 12)))
            image = image + rng.integers(-noise, noise + 1, image.shape)
            images.append(image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
        super().__init__(np.stack(images), labels, classes)


def classifier(width: int, images: int = 400) -> dict:
    """Config of a classifier, without distillation."""
    loader = dict(batch_size=40, num_workers=0, collate_fn=dict(type='whole_batch'))
    return dict(
        default_scope='mmkd_plugin',
        model=dict(
            type='ImageClassifier',
            backbone=dict(type='CIFARResNet', depth=8, widths=(width, width, 2 * width, 4 * width)),
            head=dict(type='LinearHead', num_classes=len(CLASSES)),
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=MEAN, std=STD),
        ),
        train_dataloader=dict(
            loader,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(type='OneShape', count=images),
        ),
        val_dataloader=dict(
            loader,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='OneShape', count=240, seed=1),
        ),
        val_evaluator=dict(type='ClsAccuracy'),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=10),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
    )


# -- images with boxes -------------------------------------------------------------------------


def draw_scenes(root: Path, counts: dict[str, int], size: int = 64) -> Path:
    """Writes images and COCO files, ``train.json`` and the like."""
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    for seed, (split, count) in enumerate(counts.items()):
        rng, images, annotations = np.random.default_rng(seed), [], []
        (root / split).mkdir(parents=True)
        for number in range(count):
            image = background(rng, size)
            for place in rng.permutation(4)[: rng.integers(1, 4)]:  # one in each quarter
                label, side = int(rng.integers(len(CLASSES))), int(rng.integers(16, 29))
                free = size // 2 - side + 1
                x, y = (int(q) * size // 2 + int(rng.integers(free)) for q in divmod(place, 2))
                draw(image, label, (x, y), side)
                third = max(side // 3, 2)
                middle, shape = (side - third) // 2, SHAPES[label // 2]
                box = [x, y, side, side]
                if shape == 'bar':
                    box = [x, y + middle, side, third]
                if shape == 'pole':
                    box = [x + middle, y, third, side]
                annotations.append(
                    dict(
                        id=len(annotations) + 1, image_id=number, category_id=label + 1, bbox=box,
                        area=box[2] * box[3], iscrowd=0, segmentation=[_outline(*box)],
                    )
                )  # fmt: skip
            name = f'{number:04d}.png'
            cv2.imwrite(str(root / split / name), image[..., ::-1])
            images.append(dict(id=number, file_name=name, width=size, height=size))
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'{split}.json').write_text(json.dumps(content))
    return root


def _outline(x: int, y: int, width: int, height: int) -> list[int]:
    """Of the whole box, a cross too."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def detector(model: dict, root: Path, size: int = 64, masks: bool = False) -> dict:
    """Config of a detector on :func:`draw_scenes`, without distillation."""
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(size, size), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        dict(type='PackDetInputs'),
    ]
    train = [steps[0], steps[2], steps[1], steps[3]]

    def dataset(split: str, pipeline: list) -> dict:
        return dict(
            type='CocoDataset',
            ann_file=str(root / f'{split}.json'),
            data_prefix=dict(img=str(root / split)),
            metainfo=dict(classes=CLASSES),
            pipeline=pipeline,
            test_mode=split == 'val',
        )

    return dict(
        default_scope='mmdet',
        model=model,
        train_dataloader=dict(
            batch_size=8,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dataset('train', train),
        ),
        val_dataloader=dict(
            batch_size=8,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dataset('val', steps),
        ),
        val_evaluator=dict(type='CocoMetric', ann_file=str(root / 'val.json'), metric='bbox'),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=10),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
    )


# -- trained -----------------------------------------------------------------------------------


def train(config: dict, steps: int, file: Path, lr: float, seed: int = 3, classes=CLASSES) -> Path:
    """Trains the model of a config and saves it as MMEngine does."""
    cfg = Config(config)
    init_default_scope(cfg.default_scope)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(cfg)
        model.init_weights()
        model.train()
        kind = torch.optim.SGD if cfg.default_scope == 'mmkd_plugin' else torch.optim.AdamW
        more = {} if kind is torch.optim.AdamW else dict(momentum=0.9, nesterov=True)
        optimizer = kind(model.parameters(), lr=lr, weight_decay=1e-3, **more)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 1))
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
        done = 0
        while done < steps:
            for data in loader:
                data = model.data_preprocessor(data, True)
                losses = model(**data, mode='loss')
                optimizer.zero_grad()
                model.parse_losses(losses)[0].backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
                optimizer.step()
                rates.step()
                done += 1
                if done == steps:
                    break
    save(model, file, classes)
    return file


def unlike_new(config: dict, file: Path) -> Path:
    """Saves weights of which none is an initialisation's, as if the model were trained."""
    cfg = Config(config)
    init_default_scope(cfg.default_scope)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg)
        model.init_weights()
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.data += 0.02 * torch.rand_like(tensor)
    save(model, file)
    return file


def save(model: torch.nn.Module, file: Path, classes=CLASSES) -> None:
    """A checkpoint with the names of the classes."""
    meta = dict(dataset_meta=dict(classes=tuple(classes)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), file)


# -- examined ----------------------------------------------------------------------------------


def distilled(student: dict, teacher: dict, checkpoint, **hook) -> Config:
    """A config with a DistillHook; keys of ``teacher_options`` go to the teacher."""
    options = hook.pop('teacher_options', {})
    file = None if checkpoint is None else str(checkpoint)
    entry = dict(config=copy.deepcopy(teacher), checkpoint=file, **options)
    hook = dict(type='mmkd_plugin.DistillHook', teacher=entry, **(hook or dict(recipe='kd')))
    return Config(dict(copy.deepcopy(student), custom_hooks=[hook]))


def found(report: Report, severity: str | None = None) -> set[str]:
    """The codes of a report."""
    return {f.code for f in report.findings if severity in (None, f.severity)}


def diagnose(cfg: Config, student: Path | None = None, **options) -> Report:
    """The doctor on a config; its report must go into JSON."""
    checkpoint = None if student is None else str(student)
    return examine(cfg, Options(student_checkpoint=checkpoint, **options))
