"""The picture of the README, drawn from made-up detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('matplotlib')
pytest.importorskip('cv2')

from benchmarks.picture import draw

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_of_pictures_for_each_image(tmp_path):
    import matplotlib.image

    box = [10.0, 10.0, 40.0, 60.0]
    entry = dict(
        image=np.zeros((96, 96, 3), np.uint8),
        classes=('0', '1'),
        truth=[dict(box=box, label=1)],
        student=[dict(box=[50.0, 10.0, 80.0, 60.0], label=0, score=0.4)],
        distilled=[dict(box=box, label=1, score=0.9)],
    )
    sizes = []
    for count in (1, 2):
        draw([entry] * count, dict(student='Alone', distilled='Taught'), tmp_path / 'x.jpg')
        picture = matplotlib.image.imread(tmp_path / 'x.jpg')
        sizes.append(picture.shape)
        green = (picture[..., 1] > 180) & (picture[..., 0] < 110)
        third = picture.shape[1] // 3
        assert green[:, 2 * third :].sum() > 100  # the right box of the distilled student
        assert green[:, : 2 * third].sum() == 0
    assert sizes[1][0] == 2 * sizes[0][0] and sizes[1][1] == sizes[0][1]


def test_the_committed_picture_is_small():
    assert 10_000 < (ROOT / 'docs' / 'assets' / 'digits.jpg').stat().st_size < 300_000
