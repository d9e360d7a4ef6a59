"""Rotated boxes in MMRotate's own format, DOTA's: noise with a few ships in each image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

CLASSES = 15  # DOTA's


def made_up_ships(folder: Path, images: int = 4, side: int = 128) -> Path:
    """Writes ``annfiles/`` and ``images/`` into a folder, which it returns."""
    rng = np.random.default_rng(0)
    for name in ('annfiles', 'images'):
        (folder / name).mkdir(parents=True)
    for i in range(images):
        picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        lines = []
        for centre in ((0.3, 0.3), (0.7, 0.6)):
            box = ((centre[0] * side, centre[1] * side), (40.0, 24.0), float(rng.uniform(-80, 80)))
            corners = cv2.boxPoints(box)
            cv2.fillPoly(picture, [corners.astype(np.int32)], (255, 255, 255))
            lines.append(' '.join(f'{x:.1f}' for x in corners.flatten()) + ' ship 0')
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), picture)
        (folder / 'annfiles' / f'{i}.txt').write_text('\n'.join(lines))
    return folder


def ship_dataset(folder: Path, side: int = 128) -> dict:
    """DOTADataset on such a folder, with the pipeline of MMRotate's configs."""
    return dict(
        type='DOTADataset',
        data_root=str(folder),
        ann_file='annfiles/',
        data_prefix=dict(img_path='images/'),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
            dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
            dict(type='mmdet.Resize', scale=(side, side), keep_ratio=True),
            dict(type='mmdet.PackDetInputs'),
        ],
    )
