"""A few COCO images for the config tests: the real subset when it is at hand, else a drawn one.

The real one is `coco_mini_permissive.tar.gz`, in the folder `$MMKD_DATA` or in `../shared/data`
beside the repository. The drawn one has the same folders and the 80 category names, so that every
COCO config finds its data without editing more than `data_root`.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import cv2
import numpy as np

ARCHIVE = 'coco_mini_permissive.tar.gz'
REPOSITORY = Path(__file__).resolve().parents[2]


def archive() -> Path | None:
    """Returns the archive of real images, or None where there is none."""
    folders = [os.environ.get('MMKD_DATA'), REPOSITORY.parent / 'shared' / 'data']
    for folder in folders:
        if folder and (Path(folder) / ARCHIVE).is_file():
            return Path(folder) / ARCHIVE
    return None


def coco_root(cache: Path) -> Path:
    """Puts the images into `cache` and returns the folder that holds `annotations/`.

    Args:
        cache: An existing folder that the caller throws away later.
    """
    packed = archive()
    if packed is None:
        return draw_coco(cache / 'coco_drawn')
    with tarfile.open(packed) as tar:
        tar.extractall(cache, filter='data')
    return next(cache.glob('*/annotations')).parent


def draw_coco(root: Path, images: int = 6, size: tuple[int, int] = (160, 120)) -> Path:
    """Draws coloured ellipses on noise, with boxes, polygons and one crowd region per split.

    Args:
        root: The folder to write, made if missing.
        images: Number of images per split.
        size: Width and height of the images.
    """
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    for seed, split in enumerate(('train2017', 'val2017')):
        rng = np.random.default_rng(seed)
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / 'annotations').mkdir(exist_ok=True)
        records: dict = dict(images=[], annotations=[], categories=categories)
        for image_id in range(1, images + 1):
            _draw_image(root / split, image_id, size, rng, records)
        _add_crowd(records)
        file = root / 'annotations' / f'instances_{split}.json'
        file.write_text(json.dumps(records))
    return root


def _draw_image(folder: Path, image_id: int, size, rng, records: dict) -> None:
    width, height = size
    image = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    name = f'{image_id:012d}.jpg'
    records['images'].append(dict(id=image_id, file_name=name, width=width, height=height))
    for _ in range(3):
        radius = rng.integers(14, 30, 2)
        centre = (int(rng.integers(30, width - 30)), int(rng.integers(30, height - 30)))
        points = cv2.ellipse2Poly(centre, tuple(int(r) for r in radius), 0, 0, 360, 20)
        cv2.fillPoly(image, [points], tuple(int(c) for c in rng.integers(100, 255, 3)))
        x, y, w, h = (int(v) for v in cv2.boundingRect(points))
        records['annotations'].append(
            dict(
                id=len(records['annotations']) + 1,
                image_id=image_id,
                category_id=int(rng.integers(1, 81)),
                bbox=[x, y, w, h],
                area=float(cv2.contourArea(points)),
                segmentation=[points.flatten().tolist()],
                iscrowd=0,
            )
        )
    cv2.imwrite(str(folder / name), image)


def _add_crowd(records: dict) -> None:
    """Adds one crowd region in COCO's uncompressed run-length form (column by column)."""
    image = records['images'][0]
    height, width = image['height'], image['width']
    columns = 10
    counts = [0, height * columns, height * (width - columns)]
    records['annotations'].append(
        dict(
            id=len(records['annotations']) + 1,
            image_id=image['id'],
            category_id=1,
            bbox=[0, 0, columns, height],
            area=float(height * columns),
            segmentation=dict(size=[height, width], counts=counts),
            iscrowd=1,
        )
    )
