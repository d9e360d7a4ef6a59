"""Tiny versions of sixteen detector families, made by shrinking the configs that mmdet ships.

Only numbers change (widths, layers, queries, classes), so a tiny detector walks through the same
code as the real one. `WIDTH` channels for the student, twice as many for its teacher.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.utils import digit_version

WIDTH = 16
IMAGE = 96


@dataclass(frozen=True)
class Family:
    """One row of docs/coverage.md.

    Attributes:
        config: The config below mmdet's `configs/` that is shrunk.
        tap: The tap of the feature terms, the same path in student and teacher.
        levels: How many maps the tap yields.
        masks: Whether training needs instance masks.
        levels_in: How many backbone stages the neck (or the head) reads.
    """

    config: str
    tap: str = 'neck.fpn_convs.*.conv'
    levels: int = 5
    masks: bool = False
    levels_in: int = 4


FAMILIES = {
    'RetinaNet': Family('retinanet/retinanet_r50_fpn_1x_coco.py'),
    'GFL': Family('gfl/gfl_r50_fpn_1x_coco.py'),
    'FCOS': Family('fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'),
    'ATSS': Family('atss/atss_r50_fpn_1x_coco.py'),
    'RepPoints': Family('reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py'),
    'VFNet': Family('vfnet/vfnet_r50_fpn_1x_coco.py'),
    'RTMDet': Family('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'neck.out_convs.*.conv', 3),
    'YOLOX': Family('yolox/yolox_tiny_8xb8-300e_coco.py', 'neck.out_convs.*.conv', 3),
    'Faster R-CNN': Family('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', levels=4),
    'Mask R-CNN': Family('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', levels=4, masks=True),
    'Cascade R-CNN': Family('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', levels=4),
    'SOLO': Family('solo/solo_r50_fpn_1x_coco.py', levels=4, masks=True),
    'CondInst': Family('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', masks=True),
    'Deformable DETR': Family(
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'neck', 4, levels_in=3
    ),
    'DINO': Family('dino/dino-4scale_r50_8xb2-12e_coco.py', 'neck', 4, levels_in=3),
    'Mask2Former': Family(
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 'backbone', 4, masks=True
    ),
}


def skip_if_too_large(family: str) -> None:
    """Skips DINO with an mmdet whose decoder insists on full width."""
    if family == 'DINO' and digit_version(mmdet.__version__) < digit_version('3.4'):
        pytest.skip(f'the DINO decoder of mmdet {mmdet.__version__} works with 256 channels only')


def model_config(family: str, width: int = WIDTH, classes: int = 10) -> ConfigDict:
    """Returns the model config of a tiny detector.

    Args:
        family: A key of `FAMILIES`.
        width: Channels of neck and head; the backbone grows with it.
        classes: Number of classes.
    """
    model = get_config(f'mmdet::{FAMILIES[family].config}').model
    _shrink(model, width, classes)
    _shrink_backbone(model, width, FAMILIES[family].levels_in)
    # 256 channels and 32 groups are defaults of these heads, not written in the configs
    if family in ('Deformable DETR', 'DINO'):
        model.bbox_head.embed_dims = width
    if family in ('GFL', 'FCOS', 'ATSS', 'VFNet', 'CondInst'):
        model.bbox_head.norm_cfg = dict(type='GN', num_groups=4, requires_grad=True)
    if family == 'CondInst':
        model.mask_head.mask_feature_head.update(feat_channels=8, num_stacked_convs=1)
    if family == 'SOLO':
        model.mask_head.num_grids = [8, 6, 5, 4, 3]
    if family == 'Mask2Former':
        model.panoptic_head.loss_cls.class_weight = [1.0] * classes + [0.1]
        model.train_cfg.num_points = 64
    return model


def _shrink(node, width: int, classes: int) -> None:
    """Replaces the numbers that make a detector large, everywhere below `node`."""
    for child in node if isinstance(node, (list, tuple)) else ():
        _shrink(child, width, classes)
    if not isinstance(node, dict):
        return
    if node.get('type') == 'SyncBN':
        node['type'] = 'BN'  # SyncBN does not train on the CPU
    small = dict(
        num_groups=4,
        stacked_convs=1,
        num_convs=1,
        fc_out_channels=32,
        feedforward_channels=32,
        num_queries=8,
        num_dn_queries=4,
        num_heads=4,
        nms_pre=64,
        max_per_img=16,
        max_per_image=16,
        num_feats=width // 2,
        num_classes=classes,
        num_things_classes=classes,
        embed_dims=width,
    )
    for key, value in list(node.items()):
        if key == 'init_cfg':
            node[key] = None
        elif key in small and isinstance(value, int):
            node[key] = small[key]
        elif key.endswith('channels') and value in (96, 256):
            node[key] = width
        elif key in ('encoder', 'decoder', 'transformer_decoder') and 'num_layers' in value:
            value['num_layers'] = 2
        elif key == 'batch_augments' and value:
            _shrink_augments(value)
        _shrink(node[key], width, classes)


def _shrink_augments(augments: list) -> None:
    for augment in augments:
        if 'size' in augment:
            augment['size'] = (IMAGE, IMAGE)
        else:  # YOLOX keeps its random size: small, drawn at every step
            augment.update(random_size_range=(IMAGE, 2 * IMAGE), interval=1)


def _shrink_backbone(model: dict, width: int, levels_in: int) -> None:
    backbone = model.backbone
    if backbone.type == 'ResNet':
        backbone.update(depth=18, base_channels=width // 2, frozen_stages=-1, style='pytorch')
        channels = [width // 2 * 2**stage for stage in range(4)][-levels_in:]
    else:
        backbone.update(deepen_factor=0.1, widen_factor=width / 128)
        channels = [2 * width, 4 * width, 8 * width]
    reader = model.neck if 'neck' in model else model.panoptic_head
    reader.in_channels = channels


def classes_of(annotations: Path) -> tuple[str, ...]:
    """Returns the category names of a COCO file, in its order."""
    return tuple(c['name'] for c in json.loads(Path(annotations).read_text())['categories'])


def run_config(
    model: dict, annotations: Path, images: Path, work_dir: Path, masks: bool, **overrides
) -> Config:
    """Returns a Runner config that trains `model` for two iterations of two images.

    Args:
        model: The model config.
        annotations: COCO file of the training images.
        images: Folder of the training images.
        work_dir: Where the checkpoint goes.
        masks: Whether to load instance masks.
        **overrides: Further keys of the config, such as `custom_hooks`.
    """
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks, poly2mask=True),
        dict(type='Resize', scale=(IMAGE, IMAGE), keep_ratio=False),
        dict(type='PackDetInputs'),
    ]
    dataset = dict(
        type='CocoDataset',
        ann_file=str(annotations),
        data_prefix=dict(img=str(images)),
        metainfo=dict(classes=classes_of(annotations)),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=pipeline,
    )
    config = dict(
        default_scope='mmdet',
        model=model,
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            dataset=dataset,
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.001, momentum=0.9),
            clip_grad=dict(max_norm=10, norm_type=2),
        ),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
        ),
        work_dir=str(work_dir),
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name='tiny',
    )
    config.update(overrides)
    return Config(config)
