"""tools/prepare_bccd.py: the public VOC files become the COCO set that the configs read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SPLITS = dict(train=['Cell_2', 'Cell_0'], val=['Cell_1'], test=['Cell_3'])
OBJECT = (
    '<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>'
    '<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)
BOXES = dict(
    Cell_0=[('RBC', 1, 2, 11, 22), ('Platelets', 5, 5, 5, 9)],  # the second has no area
    Cell_1=[('WBC', 3, 4, 30, 20)],
    Cell_2=[('Platelets', 0, 0, 4, 6), ('WBC', 10, 10, 40, 30)],
    Cell_3=[],
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small set in the layout of a clone of the public one."""
    root = tmp_path / 'clone'
    voc = root / 'BCCD'
    for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (voc / part).mkdir(parents=True)
    for split, names in SPLITS.items():
        (voc / 'ImageSets/Main' / f'{split}.txt').write_text('\n'.join(names) + '\n')
    for name, boxes in BOXES.items():
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(voc / 'JPEGImages' / f'{name}.jpg')
        objects = ''.join(OBJECT.format(*box) for box in boxes)
        # sizes in the files of such sets are not to be relied upon
        text = f'<annotation><filename>wrong.jpg</filename>{objects}</annotation>'
        (voc / 'Annotations' / f'{name}.xml').write_text(text)
    return root


def run(*arguments, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / 'tools/prepare_bccd.py'), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def read(out: Path, split: str) -> dict:
    return json.loads((out / 'annotations' / f'instances_{split}.json').read_text())


def test_voc_becomes_coco(clone, tmp_path):
    out = tmp_path / 'data' / 'bccd_coco'
    done = run('--voc', clone, '--out', out)
    assert done.returncode == 0, done.stderr
    assert 'BCCD is ready' in done.stdout
    assert 'Cell_0: a box without an area is left out' in done.stdout
    assert 'train has 2 images and 3 boxes, measured were 205 and 2804' in done.stdout

    train, val, test = (read(out, split) for split in SPLITS)
    assert [c['name'] for c in train['categories']] == ['RBC', 'WBC', 'Platelets']
    assert [(i['id'], i['file_name']) for d in (train, val, test) for i in d['images']] == [
        (1, 'Cell_0.jpg'), (2, 'Cell_2.jpg'), (3, 'Cell_1.jpg'), (4, 'Cell_3.jpg')
    ]  # fmt: skip
    assert {(i['width'], i['height']) for i in train['images']} == {(48, 32)}
    found = [
        (a['id'], a['image_id'], a['category_id'], a['bbox'], a['area'])
        for data in (train, val, test)
        for a in data['annotations']
    ]
    assert found == [
        (1, 1, 1, [1, 2, 10, 20], 200),
        (2, 2, 3, [0, 0, 4, 6], 24),
        (3, 2, 2, [10, 10, 30, 20], 600),
        (4, 3, 2, [3, 4, 27, 16], 432),
    ]
    for name in BOXES:
        source = clone / 'BCCD' / 'JPEGImages' / f'{name}.jpg'
        assert (out / 'images' / f'{name}.jpg').read_bytes() == source.read_bytes()
    assert not list(out.parent.glob('*.part'))


def test_the_config_reads_what_was_written(clone, tmp_path, monkeypatch):
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    out = tmp_path / 'bccd'
    assert run('--voc', clone / 'BCCD', '--out', out).returncode == 0
    monkeypatch.setenv('BCCD_ROOT', str(out))
    config = Config.fromfile(ROOT / 'configs/_base_/datasets/bccd_detection.py')
    register_all_modules()
    data = DATASETS.build(config.train_dataloader.dataset)
    assert data.metainfo['classes'] == ('RBC', 'WBC', 'Platelets') and len(data) == 2
    item = data[1]['data_samples']
    assert item.gt_instances.labels.tolist() == [2, 1]


def test_a_complete_copy_is_kept_and_a_missing_one_explained(clone, tmp_path):
    out = tmp_path / 'bccd'
    nothing = run('--out', out)
    assert nothing.returncode != 0 and 'git clone' in nothing.stderr and '--voc' in nothing.stderr
    assert str(ROOT.parent) not in nothing.stderr.replace(str(ROOT), ''), 'a path outside the clone'
    assert run('--voc', clone, '--out', out).returncode == 0
    before = (out / 'annotations/instances_val.json').stat().st_mtime_ns
    assert run('--out', out).returncode == 0
    assert (out / 'annotations/instances_val.json').stat().st_mtime_ns == before
    (out / 'images/Cell_1.jpg').unlink()
    assert 'git clone' in run('--out', out).stderr


@pytest.mark.parametrize(
    ('place', 'content', 'said'),
    [
        ('Annotations/Cell_1.xml', '<annotation>', 'Cell_1.xml is no VOC annotation'),
        ('Annotations/Cell_1.xml', None, 'Cell_1.xml is missing'),
        ('JPEGImages/Cell_1.jpg', None, 'Cell_1.jpg is missing'),
        ('ImageSets/Main/val.txt', None, 'val.txt is missing'),
        ('ImageSets/Main/val.txt', 'Cell_0\n', 'Cell_0: listed twice'),
        (
            'Annotations/Cell_1.xml',
            '<annotation>' + OBJECT.format('Rbc', 1, 1, 2, 2) + '</annotation>',
            "has the class 'Rbc'; known are RBC, WBC, Platelets",
        ),
    ],
)
def test_a_damaged_set_is_refused_by_name(clone, tmp_path, place, content, said):
    file = clone / 'BCCD' / place
    file.unlink() if content is None else file.write_text(content)
    done = run('--voc', clone, '--out', tmp_path / 'bccd')
    assert done.returncode != 0 and said in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'bccd').exists()


def test_another_folder_is_no_voc_set(tmp_path):
    done = run('--voc', tmp_path, '--out', tmp_path / 'bccd')
    assert done.returncode != 0 and 'is no VOC set' in done.stderr
