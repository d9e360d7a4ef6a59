"""The configs of logit distillation: their numbers are the recipes', and each of them trains.

Every config runs one iteration on COCO images with small versions of its own two models; the slow
tests run it with the models as they are.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from coco_mini import coco_root
from config_pairs import (
    CONFIGS,
    LOGIT_CONFIGS,
    Watch,
    hook_of,
    one_iteration,
    read,
    shrink,
    small_model,
    small_teacher,
    zoo,
)
from detectors import skip_if_too_large
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmkd_plugin import recipes
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import build_model

EPOCHS = dict([('1x', 12), ('2x', 24), ('12e', 12), ('20e', 20), ('50e', 50)])


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    return coco_root(tmp_path_factory.mktemp('coco'))


@pytest.fixture(autouse=True)
def unformatted_configs(monkeypatch):
    """A Runner formats its config four times for the log: seconds, and nobody reads them."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: str(self._cfg_dict)))


def schedule(name: str) -> str:
    return name.split('_')[-2]


def small_pair(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    config = read(name)
    student = dict(model=small_model(config, 16), default_scope='mmdet')
    teacher = small_teacher(hook_of(config).teacher.config)
    return build_model(Config(student)), build_model(Config(teacher))


@pytest.mark.parametrize('name', LOGIT_CONFIGS)
def test_the_terms_are_those_of_the_recipe(name):
    """Config files and `--recipe` cannot drift apart."""
    skip_if_too_large('DINO' if 'dino' in name else '')
    config, recipe = read(name), LOGIT_CONFIGS[name]
    length = dict(epochs=EPOCHS[schedule(name)])
    plan = recipes.resolve(recipe, *small_pair(name), length, weights='published')
    hook = hook_of(config)
    if 'recipe' in hook:  # then no terms are written that could be others
        assert (hook.recipe, hook.weights) == (recipe, 'published') and 'terms' not in hook
        hook = plan
    written = [normalised(term) for term in hook['terms']]
    assert written == [normalised(term) for term in plan['terms']]
    assert hook.get('task_weight', 1.0) == plan['task_weight'] == 1.0


def test_heterogeneous_pairs_need_no_list_of_levels():
    """What `--recipe gdd+kd` makes of them, number by number."""
    names = [name for name in LOGIT_CONFIGS if 'heterogeneous' in name]
    found = {}
    for name in names:
        gdd, kd = recipes.resolve('gdd+kd', *small_pair(name), weights='published')['terms']
        assert gdd['loss'] == dict(type='GDDLoss', temperature=4.0, noise='channel')
        assert kd['loss'] == dict(type='KDLoss', temperature=1.0)
        assert (gdd['weight'], kd['weight'], kd['student']) == (65.0, 1.0, 'cls_logits')
        found[Path(name).name] = gdd['student'], gdd['teacher'], kd.get('teacher')
    assert found == {
        'gdd-kd_faster-rcnn-r101_gfl-r50_1x_coco': (
            dict(path='neck', levels=[0, 1, 2]),  # P3-P5 of P3-P7 and of P2-P6
            dict(path='neck', levels=[1, 2, 3]),
            'detections',
        ),
        'gdd-kd_gfl-r101_fcos-r50_1x_coco': (*('neck.fpn_convs.*.conv',) * 2, None),
    }


def normalised(term: dict) -> dict:
    """A term with the keys that it may leave out."""
    term = dict(term, loss=dict(term['loss']))
    term.setdefault('teacher', term['student'])
    term.setdefault('name', term['loss']['type'].removesuffix('Loss').lower())
    return term


@pytest.mark.parametrize('name', LOGIT_CONFIGS)
def test_schedule_and_optimizer(name):
    """Logit terms leave the student's own training alone; with GDD, its clipping comes along."""
    config = read(name)
    base = load_model_config(f'mmdet::{student_base(name)}')
    assert config.train_cfg.max_epochs == base.train_cfg.max_epochs == EPOCHS[schedule(name)]
    assert plain(config.param_scheduler) == plain(base.param_scheduler)
    assert plain(config.optim_wrapper.optimizer) == plain(base.optim_wrapper.optimizer)
    own = plain(config.optim_wrapper.get('clip_grad'))
    if 'gdd' in LOGIT_CONFIGS[name] or 'gdd' in name:
        assert own == dict(max_norm=35, norm_type=2)
    else:
        assert own == plain(base.optim_wrapper.get('clip_grad'))


def plain(node):
    """A part of a config without the scopes that a `_base_` of another package leaves in it."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return [plain(child) for child in node] if isinstance(node, list) else node


def student_base(name: str) -> str:
    return next(path for key, path in BASES.items() if f'_{key}' in name)


BASES = {
    'faster-rcnn-r50_2x': 'faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    'faster-rcnn-r18_2x': 'faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    'faster-rcnn-mobilenet-v2_2x': 'faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    'mask-rcnn-r50_2x': 'mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py',
    'mask-rcnn-r18_2x': 'mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py',
    'mask-rcnn-mobilenet-v2_2x': 'mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py',
    'cascade-rcnn-r50_20e': 'cascade_rcnn/cascade-rcnn_r50_fpn_20e_coco.py',
    'retinanet-r50_2x': 'retinanet/retinanet_r50_fpn_2x_coco.py',
    'gfl-r50_1x': 'gfl/gfl_r50_fpn_1x_coco.py',
    'fcos-r50_1x': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'deformable-detr-r50_50e': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dino-4scale-r50_12e': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'solo-r50_1x': 'solo/solo_r50_fpn_1x_coco.py',
}


@pytest.mark.parametrize('name', LOGIT_CONFIGS)
def test_teacher_weights_belong_to_the_teacher_config(name):
    teacher = hook_of(read(name)).teacher
    assert not teacher.get('allow_random')
    if 'solo' in name:
        return  # the one that no zoo has: tests/configs/test_coco_configs.py
    assert teacher.config == f'mmdet::{zoo()[teacher.checkpoint]}'


@pytest.mark.parametrize('name', [n for n in LOGIT_CONFIGS if 'r18' in n or 'mobilenet' in n])
def test_students_that_mmdet_does_not_ship(name):
    """Backbone and neck fit each other, and every stride is there."""
    config = read(name)
    with torch.device('meta'):
        student = build_model(config)
        maps = student.extract_feat(torch.empty(1, 3, 128, 128))
    assert [m.shape[2:] for m in maps] == [(128 // s,) * 2 for s in (4, 8, 16, 32, 64)]
    assert {m.shape[1] for m in maps} == {256}
    kind = 'MobileNetV2' if 'mobilenet' in name else 'ResNet'
    assert type(student.backbone).__name__ == kind
    assert config.model.backbone.get('depth', 18) == 18


@pytest.mark.parametrize('name', [n for n in LOGIT_CONFIGS if 'mobilenet' in n])
def test_ckd_trains_the_published_mobilenet(name):
    """Official code: levels of 24, 32, 96, 320 channels, FREEZE_AT 0, frozen BatchNorm."""
    config = read(name)
    with torch.device('meta'):
        student = build_model(config).train()
        maps = student.backbone(torch.empty(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [24, 32, 96, 320]
    norms = [m for m in student.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    trained = {n: p.requires_grad for n, p in student.backbone.named_parameters()}
    convs = {n for n, m in student.backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert all(needed == (n.removesuffix('.weight') in convs) for n, needed in trained.items())
    assert config.find_unused_parameters, 'no loss reaches the last convolution of the backbone'


def train_once(config: Config) -> Watch:
    watch = Watch()
    runner = Runner.from_cfg(config)
    runner.register_hook(watch)
    runner.train()
    return watch


def check(watch: Watch, config: Config) -> None:
    """Every term acted and said a finite number."""
    hook = hook_of(config)
    recipe = hook.get('recipe')
    names = recipes.term_names(recipe) if recipe else [term['name'] for term in hook.terms]
    assert all(watch.losses[f'loss_{term}'] > 0 for term in names), watch.losses
    assert all(math.isfinite(value) for value in watch.losses.values()), watch.losses
    assert {row.term for row in watch.plan} == set(names)


@pytest.mark.parametrize('name', LOGIT_CONFIGS)
def test_one_training_iteration_of_small_models(name, data_root, tmp_path):
    skip_if_too_large('DINO' if 'dino' in name else '')
    config = one_iteration(shrink(read(name)), data_root, tmp_path)
    check(train_once(config), config)


@pytest.mark.slow
@pytest.mark.parametrize('name', LOGIT_CONFIGS)
def test_one_training_iteration(name, data_root, tmp_path):
    scale = (384, 320) if 'dino' in name else (160, 128)  # 900 queries are chosen among positions
    config = one_iteration(Config.fromfile(CONFIGS / f'{name}.py'), data_root, tmp_path, scale)
    check(train_once(config), config)


def test_a_joined_recipe_trains_like_its_config(data_root, tmp_path):
    """The hook with `recipe=` in place of the terms gives the same losses."""
    name = next(n for n, r in LOGIT_CONFIGS.items() if r == 'gdd+kd+kd-bins')
    written = train_once(one_iteration(shrink(read(name)), data_root, tmp_path / 'terms'))
    config = one_iteration(shrink(read(name)), data_root, tmp_path / 'recipe')
    del hook_of(config)['terms']
    hook_of(config).update(recipe=LOGIT_CONFIGS[name], weights='published')
    by_recipe = train_once(config)
    assert by_recipe.losses == written.losses
    assert {'loss_gdd', 'loss_kd', 'loss_kd_bins'} <= set(by_recipe.losses)
