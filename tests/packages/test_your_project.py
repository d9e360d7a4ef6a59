"""The configs of docs/your-project.md train, each where its package is installed.

Data are made up, in the package's own format, and teachers have random weights; what the page says
of models and hook stays as it is.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from five_steps import Losses
from made_up_data import DATA
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd_plugin.model_config import let_bases_be_found

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'your-project.md'
BLOCKS = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), re.M | re.S)
PACKAGES = ('mmdet', 'mmseg', 'mmpretrain', 'mmrotate', 'mmpose')


def needs(block: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"'(\w+)::", block)))


def test_every_package_has_its_lines():
    assert [needs(block)[0] for block in BLOCKS] == [*PACKAGES, 'mmdet']
    assert needs(BLOCKS[-1]) == ['mmdet', 'mmpretrain']


def shortened(config: Config, data: dict, work_dir: Path) -> Config:
    """Two iterations on made-up data, without validation, downloads and files of weights."""
    for key in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            config.pop(f'{key}_{part}', None)
    config.train_dataloader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=False),
        dataset=data,
    )
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
    config.default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_last=False))
    config.param_scheduler = None
    config.auto_scale_lr = None
    config.vis_backends = config.visualizer = None
    config.update(work_dir=str(work_dir), log_level='WARNING', randomness=dict(seed=0))
    backbone = config.model.backbone
    for key in ('init_cfg', 'pretrained'):
        if key in backbone:
            backbone[key] = None
    config.custom_hooks[-1].teacher.update(checkpoint=None, allow_random=True)
    return config


@pytest.mark.parametrize('block', BLOCKS, ids=lambda text: '-'.join(needs(text)))
def test_the_lines_train(block, tmp_path):
    for package in needs(block):
        if find_spec(package) is None:
            pytest.skip(f'needs {package}')
    let_bases_be_found()
    file = tmp_path / 'my_student.py'
    file.write_text(block)
    config = Config.fromfile(file)
    package = needs(block)[0]
    assert config.default_scope == package
    size = dict(side=256) if 'mmpretrain' in needs(block)[1:] else {}  # the windows of Swin
    data = DATA[package](tmp_path / 'data', **size)
    if package == 'mmseg':  # of padded images the package makes 512 x 512
        config.model.data_preprocessor.size = (64, 64)
    runner, seen = Runner.from_cfg(shortened(config, data, tmp_path / 'work')), Losses()
    runner.register_hook(seen)
    runner.train()
    assert len(seen.steps) == 2
    terms = {row.term for row in seen.plan}
    recipe = config.custom_hooks[-1].get('recipe', 'gdd')
    assert terms == set(recipe.split('+'))
    for term in terms - ({'kd'} if package == 'mmseg' else set()):  # on pixels it begins later
        assert seen.steps[-1][f'loss_{term}'] > 0
