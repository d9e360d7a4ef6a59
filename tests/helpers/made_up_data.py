"""A few made-up images for each OpenMMLab package, in its own format: its data set's config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from coco_mini import draw_coco
from made_up_people import made_up_people
from made_up_ships import made_up_ships, ship_dataset


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def objects(folder: Path, side: int = 96) -> dict:
    """MMDetection: ellipses with COCO's 80 names."""
    root = draw_coco(folder)
    return dict(
        type='CocoDataset',
        ann_file=str(root / 'annotations' / 'instances_train2017.json'),
        data_prefix=dict(img=str(root / 'train2017')),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(side, side), keep_ratio=False),
            dict(type='PackDetInputs'),
        ],
    )


def pixels(folder: Path, side: int = 64, classes: int = 5) -> dict:
    """MMSegmentation: noise, and labels in two halves."""
    rng = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (folder / name).mkdir(parents=True)
    for i in range(4):
        labels = np.full((side, side), i % classes, dtype=np.uint8)
        labels[:, : side // 2] = (i + 1) % classes
        cv2.imwrite(str(folder / 'images' / f'{i}.jpg'), _noise(rng, side))
        cv2.imwrite(str(folder / 'labels' / f'{i}.png'), labels)
    return dict(
        type='BaseSegDataset',
        metainfo=dict(classes=tuple('abcde')[:classes]),
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )


def classes(folder: Path, side: int = 32) -> dict:
    """MMPreTrain: a folder of noise for each of two classes."""
    rng = np.random.default_rng(0)
    for name in 'ab':
        (folder / name).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(folder / name / f'{i}.png'), _noise(rng, side))
    return dict(
        type='CustomDataset',
        data_root=str(folder),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )


def ships(folder: Path, side: int = 96) -> dict:
    """MMRotate: DOTA's rotated boxes."""
    return ship_dataset(made_up_ships(folder), side)


def people(folder: Path) -> dict:
    """MMPose: COCO's keypoints, with the heat maps of 256 x 192 images."""
    codec = dict(type='MSRAHeatmap', input_size=(192, 256), heatmap_size=(48, 64), sigma=2)
    return people_dataset(made_up_people(folder), codec)


def people_dataset(folder: Path, codec: dict) -> dict:
    """CocoDataset on a folder of :func:`made_up_people`, with targets of a codec."""
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        data_mode='topdown',
        ann_file='people.json',
        data_prefix=dict(img='images/'),
        pipeline=[
            dict(type='LoadImage'),
            dict(type='GetBBoxCenterScale'),
            dict(type='TopdownAffine', input_size=codec['input_size']),
            dict(type='GenerateTarget', encoder=codec),
            dict(type='PackPoseInputs'),
        ],
    )


DATA: dict[str, Callable[..., dict]] = dict(
    mmdet=objects, mmseg=pixels, mmpretrain=classes, mmrotate=ships, mmpose=people
)
