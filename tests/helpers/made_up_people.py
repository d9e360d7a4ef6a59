"""Pose data in MMPose's own format, COCO's keypoints: noise with a person in each image."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

KEYPOINTS = 17  # COCO's


def made_up_people(folder: Path, images: int = 4, side: int = 80) -> Path:
    """Writes ``people.json`` and ``images/`` into a folder, which it returns."""
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True)
    entries, people = [], []
    for i in range(images):
        picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), picture)
        entries.append(dict(id=i, file_name=f'{i}.png', width=side, height=side))
        places = np.concatenate(
            [rng.uniform(15, side - 15, (KEYPOINTS, 2)), np.full((KEYPOINTS, 1), 2.0)], 1
        )
        places[:3] = 0.0  # not annotated: their weight is 0
        people.append(
            dict(
                id=i,
                image_id=i,
                category_id=1,
                keypoints=places.flatten().tolist(),
                num_keypoints=KEYPOINTS - 3,
                bbox=[10, 10, side - 20, side - 20],
                area=float((side - 20) ** 2),
                iscrowd=0,
            )
        )
    names = [f'keypoint{i}' for i in range(KEYPOINTS)]
    category = dict(id=1, name='person', keypoints=names, skeleton=[])
    text = json.dumps(dict(images=entries, annotations=people, categories=[category]))
    (folder / 'people.json').write_text(text)
    return folder
