"""The Cityscapes configs: GDD's published numbers, MMSegmentation's student, one training step.

The data are two drawn images in the folders of Cityscapes; the models are small versions of the
configs' own.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from config_pairs import CITYSCAPES_CONFIGS, CONFIGS, Watch, hook_of, one_step, read, shrink, zoo
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd_plugin import recipes
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import build_model

pytest.importorskip('mmseg', reason='MMSegmentation is an optional extra')
pytest.importorskip('ftfy', reason='MMSegmentation imports it')

CROP = (64, 64)


@pytest.fixture(autouse=True)
def unformatted_configs(monkeypatch):
    """A Runner formats its config four times for the log: seconds, and nobody reads them."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: str(self._cfg_dict)))


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Two images of 128x64 with the train ids 0 to 18, and 255 where Cityscapes ignores."""
    root = tmp_path_factory.mktemp('cityscapes')
    rng = np.random.default_rng(0)
    for folder, suffix in (('leftImg8bit', 'leftImg8bit'), ('gtFine', 'gtFine_labelTrainIds')):
        (root / folder / 'train' / 'zurich').mkdir(parents=True)
        for i in range(2):
            cells = rng.integers(0, 19, (4, 8), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            cells[:8] = 255
            if folder == 'leftImg8bit':
                cells = rng.integers(0, 256, (64, 128, 3), dtype=np.uint8)
            name = f'zurich_00000{i}_000019_{suffix}.png'
            cv2.imwrite(str(root / folder / 'train' / 'zurich' / name), cells)
    return root


def test_every_cityscapes_config_is_in_the_table():
    files = (CONFIGS / 'semantic_segmentation').rglob('*_cityscapes-512x512.py')
    names = {str(f.relative_to(CONFIGS).with_suffix('')) for f in files}
    assert names == set(CITYSCAPES_CONFIGS)


@pytest.mark.parametrize('name', CITYSCAPES_CONFIGS)
def test_gdds_training(name):
    config = read(name)
    assert config.train_cfg.max_iters == 40000
    optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert config.optim_wrapper.optimizer == optimizer
    assert config.optim_wrapper.clip_grad is None
    (poly,) = config.param_scheduler
    assert (poly.type, poly.power, poly.eta_min, poly.end) == ('PolyLR', 0.9, 1e-4, 40000)
    assert config.train_dataloader.batch_size == 2
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert steps['RandomCrop'].crop_size == (512, 512) == config.model.data_preprocessor.size
    assert steps['RandomResize'].ratio_range == (0.5, 2.0)


@pytest.mark.parametrize('name', CITYSCAPES_CONFIGS)
def test_the_student_is_mmsegmentations(name):
    """Written out here, equal to the config that MMSegmentation ships but for the crop."""
    kind = 'deeplabv3' if 'deeplabv3' in name else 'pspnet'
    shipped = load_model_config(
        f'mmseg::{kind}/{kind}_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    ).model
    model = read(name).model
    own = model.data_preprocessor.to_dict()
    theirs = shipped.data_preprocessor.to_dict()
    assert own.pop('size') == (512, 512) and theirs.pop('size') == (512, 1024)
    assert own == theirs
    for part in ('type', 'pretrained', 'backbone', 'decode_head', 'auxiliary_head', 'test_cfg'):
        assert model[part] == shipped[part], part


@pytest.mark.parametrize('name', CITYSCAPES_CONFIGS)
def test_teacher_weights_belong_to_the_teacher_config(name):
    teacher = hook_of(read(name)).teacher
    assert teacher.config == 'mmseg::pspnet/pspnet_r101-d8_4xb2-40k_cityscapes-512x1024.py'
    files = {address.split('/mmsegmentation/')[-1]: c for address, c in zoo('mmseg').items()}
    assert teacher.config == f'mmseg::{files[teacher.checkpoint.split("/mmsegmentation/")[-1]]}'


@pytest.mark.parametrize('name', CITYSCAPES_CONFIGS)
def test_the_terms_are_those_of_the_recipe(name):
    """But for GDD's alpha of DeepLabV3, which its paper raises for this pair."""
    recipe, alpha = CITYSCAPES_CONFIGS[name]
    config = shrink(read(name))
    pair = [
        build_model(Config(dict(model=model, default_scope='mmseg')))
        for model in (config.model, hook_of(config).teacher.config['model'])
    ]
    plan = recipes.resolve(recipe, *pair, dict(iterations=40000), weights='published')
    (term,) = plan['terms']
    (written,) = hook_of(config).terms
    assert written.loss == term['loss']
    assert written.student == term['student'] == term.get('teacher', term['student'])
    assert written.weight == (alpha or term['weight'])
    assert alpha in (None, 175.0, term['weight'])


def prepared(config: Config, data_root: Path, work_dir: Path) -> Config:
    """One step on two small crops, without any download."""
    config.model.data_preprocessor.size = CROP
    del config.default_hooks['visualization']
    loader = config.train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader.dataset.data_root = str(data_root)
    for step in loader.dataset.pipeline:
        if step.type == 'RandomResize':
            step.scale = (128, 64)
        if step.type == 'RandomCrop':
            step.crop_size = CROP
    hook = hook_of(config)
    hook.teacher.update(checkpoint=None, allow_random=True)
    hook.probe_size = CROP
    return one_step(config, work_dir)


def train_once(config: Config) -> Watch:
    watch = Watch()
    runner = Runner.from_cfg(config)
    runner.register_hook(watch)
    runner.train()
    return watch


@pytest.mark.parametrize('name', CITYSCAPES_CONFIGS)
def test_one_training_iteration_of_small_models(name, data_root, tmp_path):
    """Student and teacher of MMSegmentation, through the same hook as detectors."""
    watch = train_once(prepared(shrink(read(name)), data_root, tmp_path))
    method = Path(name).name.split('_')[0]
    assert watch.losses[f'loss_{method}'] > 0
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(watch.losses)
    assert all(math.isfinite(value) for value in watch.losses.values()), watch.losses
    (row,) = watch.plan
    if method == 'gdd':  # 64 student and 128 teacher channels here, joined by the 1x1 convolution
        assert (row.student_shape[1], row.teacher_shape[1]) == (64, 128)
        assert row.student_shape[2:] == (8, 8), 'stride 8'


@pytest.mark.slow
@pytest.mark.parametrize('name', CITYSCAPES_CONFIGS)
def test_one_training_iteration(name, data_root, tmp_path):
    config = Config.fromfile(CONFIGS / f'{name}.py')
    config.model.pretrained = None
    norm = dict(type='BN', requires_grad=True)  # SyncBN does not train on the CPU
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        config.model[part].norm_cfg = norm
    watch = train_once(prepared(config, data_root, tmp_path))
    method = Path(name).name.split('_')[0]
    assert watch.losses[f'loss_{method}'] > 0
    assert all(math.isfinite(value) for value in watch.losses.values()), watch.losses
    (row,) = watch.plan
    if method == 'gdd':
        assert (row.student_shape[1], row.teacher_shape[1]) == (512, 2048)
        assert row.connector_parameters == 75_501_568 + 1_050_624  # generator and 1x1 convolution


def test_the_published_widths_join_at_512_and_2048():
    name = next(iter(CITYSCAPES_CONFIGS))
    config = read(name)
    with torch.device('meta'):
        student = build_model(config)
        teacher = build_model(load_model_config(hook_of(config).teacher.config))
        maps = [model.backbone(torch.empty(1, 3, 64, 64))[-1] for model in (student, teacher)]
    assert [tuple(m.shape[1:]) for m in maps] == [(512, 8, 8), (2048, 8, 8)]
