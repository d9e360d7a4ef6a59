"""The config inside a distilled run's checkpoint is the plain student's."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from toys import TEACHER, TERM, hook_config, runner_config, train

from mmkd_plugin.hooks import DistillHook
from mmkd_plugin.saving.student_config import student_config

HELPERS = Path(__file__).parents[1] / 'helpers'
SAFE = dict(type='mmkd_plugin.SafeCheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1)
EMA = dict(type='EMAHook')


def load(path):
    return torch.load(path, weights_only=False)


def test_what_distillation_brought_is_gone():
    hooks = [hook_config(), EMA, dict(type='mmkd_plugin.StepSeedHook')]
    config = runner_config('x', *hooks, default_hooks=dict(checkpoint=dict(SAFE)))
    plain = student_config(config).to_dict()
    assert plain['custom_hooks'] == [EMA]
    assert plain['default_hooks'] == dict(checkpoint=dict(SAFE, type='CheckpointHook'))
    assert 'custom_imports' not in plain and 'mmkd_plugin' not in repr(plain)
    others = set(config) - {'custom_hooks', 'default_hooks', 'custom_imports'}
    assert all(plain[key] == config[key] for key in others)
    assert config.custom_hooks[0].type == 'mmkd_plugin.DistillHook'  # the run's own stays


def test_hooks_given_as_classes_go_too():
    hook = dict(hook_config(), type=DistillHook)
    config = runner_config('x', hook, default_hooks=dict(checkpoint=dict(type=CheckpointHook)))
    plain = student_config(config)
    assert plain.custom_hooks == [] and 'mmkd_plugin' not in repr(plain.to_dict())
    assert plain.default_hooks.checkpoint.type is CheckpointHook


def test_variables_of_the_config_file_go_with_the_hook():
    teacher = dict(config=copy.deepcopy(TEACHER), allow_random=True)
    config = runner_config('x', hook_config(teacher=teacher), teacher=teacher, terms=[dict(TERM)])
    assert not {'teacher', 'terms'} & set(student_config(config))
    config = runner_config('x', hook_config(teacher=teacher), teacher=dict(other=1))
    assert student_config(config).teacher == dict(other=1)


@pytest.mark.parametrize(
    ('part', 'failed', 'imports'),
    [
        (dict(val_evaluator=dict(type='mmkd_plugin.ClsAccuracy')), True, ['mmkd_plugin', 'toys']),
        (dict(model=dict(type='mmkd_plugin.ImageClassifier')), False, ['mmkd_plugin', 'toys']),
        (dict(model=dict(type='ImageClassifier', _scope_='mmkd_plugin')), False, None),
        (dict(default_scope='mmkd_plugin', val_evaluator=dict(type='ClsAccuracy')), True, None),
        (dict(), False, ['toys']),
    ],
)
def test_the_import_stays_where_other_parts_need_it(part, failed, imports):
    config = runner_config('x', hook_config(), **part)
    config.custom_imports = dict(imports=['mmkd_plugin', 'toys'], allow_failed_imports=False)
    found = student_config(config).custom_imports
    assert found['allow_failed_imports'] == failed
    assert found['imports'] == (imports or ['mmkd_plugin', 'toys'])


BUILD = """
import sys
sys.modules['mmkd_plugin'] = None
sys.path.insert(0, {helpers!r})
import toys, torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
saved = torch.load({file!r}, weights_only=False)
for text in (saved['meta']['cfg'], saved['message_hub']['runtime_info']['cfg']):
    config = Config.fromstring(text, '.py')
    load_checkpoint(MODELS.build(config.model), {file!r}, strict=True)
config.update(work_dir={work!r}, resume=True, load_from={file!r})
config.train_cfg.max_iters = 8
Runner.from_cfg(config).train()
print('TRAINED')
"""


def test_files_build_and_resume_where_the_package_cannot_be_imported(tmp_path):
    """First and later ones, of the run and of its resumption, with moving averages."""
    hooks = dict(checkpoint=dict(SAFE, max_keep_ckpts=-1, published_keys=['meta', 'state_dict']))
    train(runner_config(tmp_path, hook_config(), EMA, max_iters=2, default_hooks=hooks))
    train(
        runner_config(tmp_path, hook_config(), EMA, max_iters=4, default_hooks=hooks, resume=True)
    )
    for path in sorted(tmp_path.glob('*.pth')):  # published ones, too
        saved = load(path)
        plain = Config.fromstring(saved['meta']['cfg'], '.py')
        assert plain.custom_hooks == [EMA] and 'mmkd_plugin' not in saved['meta']['cfg']
        if 'distiller' in saved:
            distilled = Config.fromstring(saved['distiller']['cfg'], '.py')
            assert distilled.custom_hooks[0].type == 'mmkd_plugin.DistillHook'
            assert saved['message_hub']['runtime_info']['cfg'] == saved['meta']['cfg']
    assert len(list(tmp_path.glob('*.pth'))) == 4
    code = BUILD.format(
        helpers=str(HELPERS), file=str(tmp_path / 'iter_4.pth'), work=str(tmp_path / 'plain')
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'TRAINED' in done.stdout, done.stderr[-2000:]
    assert (tmp_path / 'plain' / 'iter_8.pth').is_file()


def test_the_running_message_hub_keeps_the_runs_own_config(tmp_path):
    train(runner_config(tmp_path, hook_config(), max_iters=2))
    runner = train(runner_config(tmp_path, hook_config(), max_iters=4, resume=True))
    assert 'DistillHook' in runner.message_hub.get_info('cfg')
