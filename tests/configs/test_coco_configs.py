"""COCO configs of feature terms: published numbers, verified teachers, one real iteration each.

The iteration runs the full-size student and teacher on small images with random weights on both
sides, which the configs allow only through `allow_random=True`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from coco_mini import coco_root, draw_coco
from config_pairs import CONFIGS, LOGIT_CONFIGS, Watch, hook_of, one_iteration, read, zoo
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd_plugin import attach
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.taps import parse_tap
from mmkd_plugin.teacher import build_model

GDD = 'detection/gdd/gdd_'
SEGMENTATION = 'instance_segmentation/gdd/gdd_'
RETINANET = 'retinanet-x101-64x4d_retinanet-r50_2x_coco'

# config -> (weight, number of levels, epochs, learning rate, gradient clipping, inherited parts)
EXPECTED = {
    # GDD official configs
    f'{GDD}cascade-mask-rcnn-x101-dcn_faster-rcnn-r50_2x_coco': (4.0, 4, 24, 0.02, 35, None),
    f'{GDD}reppoints-x101-dcn_reppoints-r50_2x_coco': (65.0, 5, 24, 0.01, 35, 'neck+head'),
    f'{SEGMENTATION}solo-r101_solo-r50_1x_coco': (200.0, 4, 12, 0.01, 35, 'neck+head'),
    # recommended
    f'{GDD}{RETINANET}': (65.0, 5, 24, 0.01, 35, 'neck+head'),
    f'{GDD}retinanet-r101_retinanet-r50_2x_coco': (65.0, 5, 24, 0.01, 35, 'neck+head'),
    f'{GDD}gfl-r101_gfl-r50_1x_coco': (65.0, 5, 12, 0.01, 35, 'neck+head'),
    f'{SEGMENTATION}cascade-mask-rcnn-x101-64x4d_mask-rcnn-r50_2x_coco': (
        (4.0, 4, 24, 0.02, 35, None)
    ),
    # official config of MGD, configs of mmrazor
    f'detection/mgd/mgd_{RETINANET}': (2e-5, 5, 24, 0.01, 35, 'neck+head'),
    f'detection/pkd/pkd_{RETINANET}': (10.0, 4, 24, 0.01, None, None),
    'detection/cwd/cwd_retinanet-r101_retinanet-r50_1x_coco': (10.0, 5, 12, 0.01, None, None),
}
# The configs that stand for an official GDD config must draw noise as the official code does.
OFFICIAL_GDD = list(EXPECTED)[:3]
# Run in every test session; the others are run with the slow tests.
FAST = (f'{GDD}retinanet-r101_retinanet-r50_2x_coco', f'{SEGMENTATION}solo-r101_solo-r50_1x_coco')


def test_every_coco_config_is_in_the_table():
    tasks = ('detection', 'instance_segmentation')
    files = [f for task in tasks for f in (CONFIGS / task).rglob('*_coco.py')]
    names = {str(f.relative_to(CONFIGS).with_suffix('')) for f in files}
    assert names == {*EXPECTED, *LOGIT_CONFIGS}  # the latter: test_logit_configs.py


@pytest.mark.parametrize('name', EXPECTED)
def test_numbers(name):
    config = read(name)
    hook = hook_of(config)
    (term,) = hook.terms
    weight, _, epochs, lr, clip, inherited = EXPECTED[name]
    assert term.weight == weight
    assert config.train_cfg.max_epochs == epochs
    assert config.optim_wrapper.optimizer.lr == lr
    assert config.optim_wrapper.get('clip_grad', {}).get('max_norm') == clip
    assert hook.get('init_student') == inherited
    assert config.train_dataloader.batch_size == 2
    assert config.auto_scale_lr.base_batch_size == 16
    steps = config.param_scheduler[1].milestones
    assert steps == ([16, 22] if epochs == 24 else [8, 11])
    if term.loss.type == 'GDDLoss':
        assert term.loss.temperature == 4.0
        assert term.loss.noise == ('shared' if name in OFFICIAL_GDD else 'channel')


@pytest.mark.parametrize('name', EXPECTED)
def test_teacher_weights_belong_to_the_teacher_config(name):
    """Every address is one of mmdet's model zoo; nothing is made up."""
    teacher = hook_of(read(name)).teacher
    assert not teacher.get('allow_random')
    if 'solo' in name:
        # the one teacher that no zoo has: trained with the config beside it
        assert not teacher.checkpoint.startswith('http')
        assert load_model_config(teacher.config).model.backbone.depth == 101
        return
    assert teacher.checkpoint in zoo()
    if 'mgd' not in name:  # MGD reads the 3x weights with the 1x config
        assert teacher.config == f'mmdet::{zoo()[teacher.checkpoint]}'


@pytest.mark.parametrize('name', EXPECTED)
def test_both_models_build_and_taps_resolve(name):
    config = read(name)
    hook = hook_of(config)
    (term,) = hook.terms
    with torch.device('meta'):  # shapes only: no memory, no initialisation
        student = build_model(config)
        teacher = build_model(load_model_config(hook.teacher.config))
    levels = []
    for model in (student, teacher):
        points = parse_tap(term.student, model, 'term')
        (first, *_) = [model.get_submodule(p.path) for p in points]
        several = points[0].levels or range(getattr(first, 'num_outs', 1))
        levels.append(len(points) * len(several))
    assert levels == [EXPECTED[name][1]] * 2


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    return coco_root(tmp_path_factory.mktemp('coco'))


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in EXPECTED]
)
def test_one_training_iteration(name, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)  # seconds, for a log line
    watch = Watch()
    config = one_iteration(Config.fromfile(CONFIGS / f'{name}.py'), data_root, tmp_path)
    runner = Runner.from_cfg(config)
    runner.register_hook(watch)
    runner.train()
    assert len(watch.plan) == EXPECTED[name][1]
    assert all(row.student_shape == row.teacher_shape for row in watch.plan)
    method = Path(name).name.split('_')[0]
    assert watch.losses[f'loss_{method}'] > 0
    assert all(math.isfinite(value) for value in watch.losses.values()), watch.losses


def test_teacher_without_weights_is_refused():
    """The switch that the test above uses is the only way to a random teacher."""
    name = FAST[0]
    config = read(name).copy()
    teacher = dict(hook_of(config).teacher, checkpoint=None)
    with pytest.raises(ValueError, match='allow_random'):
        attach(torch.nn.Linear(1, 1), teacher, list(hook_of(config).terms))


def test_drawn_stand_in_is_a_coco_set(tmp_path):
    """Where the real subset is missing, the tests above run on this one."""
    from mmdet.datasets import CocoDataset

    root = draw_coco(tmp_path)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
    ]
    for split in ('train2017', 'val2017'):
        data = CocoDataset(
            data_root=str(root),
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'{split}/'),
            pipeline=pipeline,
        )
        assert len(data) == 6
        item = data[0]
        assert item['img'].shape == (120, 160, 3)
        assert len(item['gt_masks']) == len(item['gt_bboxes']) == 4
        assert item['gt_ignore_flags'].sum() == 1  # the crowd region
