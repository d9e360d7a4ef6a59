"""Detectors of MMYOLO: features, five iterations each, on its fast batches."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from mmkd_plugin.compat import StackError, check_package

if find_spec('mmyolo') is None:  # an installed but broken one must not pass as missing
    pytest.skip('needs MMYOLO', allow_module_level=True)
try:
    check_package('mmyolo')
except StackError as refusal:  # docs/your-project.md has which versions fit
    pytest.skip(str(refusal), allow_module_level=True)

from five_steps import PlainPackage, random_teacher, run_config, train
from made_up_data import objects

from mmkd_plugin.model_config import load_model_config

CONFIGS = dict(
    YOLOv5='yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py',
    YOLOv8='yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py',
)


def model_config(name: str, width: float = 0.25) -> dict:
    """The smallest model of a packaged config, without groups of processes for its norms."""
    model = load_model_config(f'mmyolo::{CONFIGS[name]}').model.to_dict()
    model['backbone'].update(widen_factor=width)
    model['neck'].update(widen_factor=width)
    model['bbox_head']['head_module'].update(widen_factor=width)
    return model


def dataset(folder) -> dict:
    data = objects(folder)
    data['type'] = 'YOLOv5CocoDataset'
    data['batch_shapes_cfg'] = None
    data['pipeline'] = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='YOLOv5KeepRatioResize', scale=(96, 96)),
        dict(type='LetterResize', scale=(96, 96), allow_scale_up=False),
        dict(
            type='mmdet.PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'),
        ),
    ]
    return data


@pytest.fixture(scope='module')
def plain_mmyolo(tmp_path_factory):
    package = PlainPackage('mmyolo', tmp_path_factory.mktemp('plain'))
    yield package
    package.close()


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_saves_and_reloads(name, tmp_path, plain_mmyolo):
    hook = dict(teacher=random_teacher('mmyolo', model_config(name, 0.5)), recipe='gdd')
    work_dir = tmp_path / f'work-{name}'
    collate = dict(collate_fn=dict(type='yolov5_collate'))
    data = dataset(tmp_path / 'data')
    runner, seen = train(
        run_config('mmyolo', model_config(name), data, work_dir, hook, **collate), ('gdd',)
    )
    assert len(seen.plan) == 3
    answer = plain_mmyolo.load(model_config(name), work_dir / 'iter_5.pth')
    assert answer == 'loaded YOLODetector'
