"""tools/train.py and tools/test.py on classifiers: real runs on scikit-learn's digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

REPO = Path(__file__).resolve().parents[2]
DIGITS = REPO / 'configs/classification/digits'
STUDENT = DIGITS / 'resnet8-narrow_digits.py'
TEACHER = DIGITS / 'resnet14_digits.py'
SHORT = ['train_cfg.max_epochs=2', 'train_dataloader.dataset.num_samples=60']

pytest.importorskip('sklearn')


@pytest.fixture(scope='module')
def teacher(tool, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('teacher')
    here = os.getcwd()
    os.chdir(REPO)
    try:
        train(tool, TEACHER, folder)
    finally:
        os.chdir(here)
    return folder / 'epoch_2.pth'


def train(tool, config: Path, folder: Path, *arguments: object, options=SHORT) -> dict:
    """Trains; returns the last line of training in the log."""
    # MMEngine keeps one visualizer and one log per name (by default: per second) and process.
    train.count = getattr(train, 'count', 0) + 1
    names = [f'visualizer.name=v{train.count}', f'experiment_name=run{train.count}']
    argv = [config, '--work-dir', folder, *arguments, '--cfg-options', *options, *names]
    tool.main([str(a) for a in argv])
    lines = sorted(folder.glob('*/vis_data/scalars.json'))[-1].read_text().splitlines()
    return [json.loads(line) for line in lines if '"loss"' in line][-1]


def from_teacher(checkpoint: Path) -> list:
    return ['--teacher', TEACHER, '--teacher-checkpoint', checkpoint]


@pytest.mark.parametrize(
    'recipe, keys',
    [
        ('kd', {'loss_kd'}),
        ('dkd', {'loss_dkd'}),
        ('loca', {'loss_loca', 'loca_mis_instruction'}),
        ('dkd-loca', {'loss_dkd_loca', 'dkd_loca_mis_instruction'}),
        ('ckd', {'loss_ckd'}),
        ('ipwd', {'loss_ipwd', 'loss_ipwd_cls', 'ipwd_weight_mean', 'ipwd_weight_max'}),
        ('ipwd-inverse', {'loss_ipwd_inverse', 'loss_ipwd_inverse_cls'}),
        ('funmatch', {'loss_funmatch', 'task_cls'}),
    ],
)
def test_every_recipe_trains_on_the_command_line(
    tool, teacher, tmp_path, monkeypatch, recipe, keys
):
    monkeypatch.chdir(REPO)
    log = train(tool, STUDENT, tmp_path, *from_teacher(teacher), '--recipe', recipe)
    assert keys <= set(log) and all(log[key] == log[key] for key in keys)
    total = sum(log[key] for key in log if key.startswith('loss_'))
    assert log['loss'] == pytest.approx(total, rel=1e-3)
    state = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    plain = torch.load(teacher, weights_only=False)
    assert not any('distiller' in key for key in state['state_dict'])
    assert 'distiller' in state and 'distiller' not in plain
    saved = Config.fromfile(tmp_path / STUDENT.name)
    hook = next(h for h in saved.custom_hooks if h.type.endswith('DistillHook'))
    assert [f'loss_{term.name}' for term in hook.terms] == [f'loss_{recipe.replace("-", "_")}']
    if recipe == 'funmatch':
        assert log['loss_cls'] == 0 and saved.model.data_preprocessor.mixup == 1
        assert saved.optim_wrapper.optimizer.type == 'AdamW'


def test_kd_is_what_a_classifier_gets_without_a_recipe(tool, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    log = train(tool, STUDENT, tmp_path, *from_teacher(teacher))
    assert 'loss_kd' in log


def test_another_recipe_for_the_config_of_a_pair(tool, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    pair = tmp_path / 'pair.py'
    pair.write_text(
        f'_base_ = {str(STUDENT)!r}\n'
        f'hook = dict(type="DistillHook", teacher=dict(config={str(TEACHER)!r}, '
        f'checkpoint={str(teacher)!r}), recipe="kd", task_weight=0.3)\n'
        'custom_hooks = [hook]\n'
    )
    log = train(tool, pair, tmp_path / 'work', '--recipe', 'ckd')
    assert 'loss_ckd' in log and 'loss_kd' not in log
    saved = Config.fromfile(tmp_path / 'work' / 'pair.py')
    assert saved.custom_hooks[0].task_weight == 1, 'that was the share of KD'
    with pytest.raises(SystemExit, match="no recipe 'ckdd'; nearest: 'ckd'"):
        train(tool, pair, tmp_path / 'other', '--recipe', 'ckdd')


def test_weights_on_the_command_line_and_in_the_config_of_the_run(
    tool, teacher, tmp_path, monkeypatch
):
    monkeypatch.chdir(REPO)
    first, again = tmp_path / 'first', tmp_path / 'again'
    options = ['--recipe', 'gdd:2+kd', '--weight', 'kd=ratio:0.5']
    log = train(tool, STUDENT, first, *from_teacher(teacher), *options)
    plan = (first / 'distillation.txt').read_text()
    assert ", found (0.5 x the task's gradient)" in plan
    assert 'smallest of their wishes (gdd 1, kd 0.1)' in plan
    saved = first / STUDENT.name
    hooks = Config.fromfile(saved).custom_hooks
    (i,) = (i for i, hook in enumerate(hooks) if hook.type.endswith('DistillHook'))
    assert [term.weight for term in hooks[i].terms] == [2, dict(ratio=0.5)]
    assert train(tool, saved, again)['loss_gdd'] == pytest.approx(log['loss_gdd'], rel=1e-6)
    changed = [*SHORT, f'custom_hooks.{i}.terms.0.weight=4']
    train(tool, saved, tmp_path / 'changed', options=changed)
    assert ' 4 ' in (tmp_path / 'changed' / 'distillation.txt').read_text()


PAIR = DIGITS / 'resnet14_resnet8-narrow_digits.py'


def changed(tool, *arguments) -> Config:
    """The config of the digits' pair with command-line options applied."""
    args = tool.parse_args([str(PAIR), *map(str, arguments)])
    cfg = Config.fromfile(PAIR)
    tool.add_distillation(cfg, args)
    return cfg


def test_options_change_the_hook_of_a_pair(tool, tmp_path):
    (tmp_path / 'mine.pth').touch()
    options = ['--teacher-checkpoint', tmp_path / 'mine.pth', '--task-weight', '0.5']
    (hook,) = changed(tool, *options, '--recipe', 'dkd', '--init-student', 'head').custom_hooks
    assert hook.teacher.checkpoint == str(tmp_path / 'mine.pth')
    assert hook.teacher.config == 'mmkd_plugin::classification/digits/resnet14_digits.py'
    assert (hook.recipe, hook.task_weight, hook.init_student) == ('dkd', 0.5, 'head')
    (hook,) = changed(tool, '--teacher-random').custom_hooks
    assert hook.teacher.checkpoint is None and hook.teacher.allow_random
    assert hook.recipe == 'kd' and 'task_weight' not in hook


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--teacher-checkpoint', 'nope.pth'], 'teacher checkpoint: there is no file nope.pth'),
        (['--task-weight', '-1'], '--task-weight -1 must be'),
        (['--teacher', str(TEACHER), '--teacher-random'], 'make two.*then change that hook'),
    ],
)
def test_bad_options_for_a_pair(tool, arguments, message):
    with pytest.raises(SystemExit, match=message):
        changed(tool, *arguments)


def test_self_distillation_takes_no_checkpoint(tool):
    config = REPO / 'configs/classification/cifar100/ps_kd_resnet20.py'
    args = tool.parse_args([str(config), '--teacher-random'])
    with pytest.raises(SystemExit, match="teacher='previous_epoch', which takes no checkpoint"):
        tool.add_distillation(Config.fromfile(config), args)


def test_a_lost_option_is_refused(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(SystemExit, match=r'Write custom_hooks\.0\.teacher\.checkpoint='):
        train(tool, PAIR, tmp_path, options=['teacher.checkpoint=mine.pth'])


def test_a_recipe_does_not_throw_terms_away(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    config = REPO / 'configs/classification/cifar100/kd_resnet56_resnet20.py'
    with pytest.raises(SystemExit, match='has terms of its own'):
        train(tool, config, tmp_path, '--recipe', 'dkd')


def test_funmatch_needs_our_preprocessor_and_epochs(tool, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    extra = [*from_teacher(teacher), '--recipe', 'funmatch']
    with pytest.raises(SystemExit, match='mixes the images in ClsDataPreprocessor, but.*ImgData'):
        other = ['model.data_preprocessor.type=ImgDataPreprocessor']
        train(tool, STUDENT, tmp_path, *extra, options=other)
    with pytest.raises(SystemExit, match='train_cfg has no max_epochs'):
        train(tool, STUDENT, tmp_path, *extra, options=['train_cfg.max_epochs=None'])


def test_the_command_line_wins_over_funmatch(tool):
    options = ['optim_wrapper.optimizer.lr=0.001', 'model.data_preprocessor.mixup=0.5']
    options.append('optim_wrapper.clip_grad.max_norm=2.0')
    args = tool.parse_args([str(PAIR), '--recipe', 'funmatch', '--cfg-options', *options])
    cfg = Config.fromfile(PAIR)
    cfg.merge_from_dict(args.cfg_options)
    tool.add_distillation(cfg, args)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=0.001, weight_decay=0.1)
    assert cfg.model.data_preprocessor.mixup == 0.5
    assert cfg.optim_wrapper.clip_grad.max_norm == 2.0


def test_a_killed_run_goes_on_exactly(tool, teacher, tmp_path, monkeypatch):
    """Crops, IPWD's auxiliary layer and its optimizer state, warm-up: all as if uninterrupted."""
    monkeypatch.chdir(REPO)
    extra = [*from_teacher(teacher), '--recipe', 'ipwd']
    four = ['train_cfg.max_epochs=4', SHORT[1]]
    train(tool, STUDENT, tmp_path / 'whole', *extra, options=four)

    class Killed(Exception):
        pass

    from mmkd_plugin.hooks import DistillHook

    def kill(self, runner):
        if runner.epoch == 2:
            raise Killed

    monkeypatch.setattr(DistillHook, 'before_train_epoch', kill)
    with pytest.raises(Killed):
        train(tool, STUDENT, tmp_path / 'parts', *extra, options=four)
    monkeypatch.undo()
    monkeypatch.chdir(REPO)
    train(tool, STUDENT, tmp_path / 'parts', *extra, '--resume', options=four)
    whole, parts = (
        torch.load(tmp_path / name / 'epoch_4.pth', weights_only=False)
        for name in ('whole', 'parts')
    )
    for key, value in whole['state_dict'].items():
        assert torch.equal(value, parts['state_dict'][key]), key
    for key, value in whole['distiller']['connectors'].items():
        assert torch.equal(value, parts['distiller']['connectors'][key]), key


def test_the_students_file_is_tested_without_a_teacher(teacher, tmp_path):
    command = [sys.executable, REPO / 'tools/test.py', TEACHER, teacher, '--work-dir', tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert 'accuracy/top1' in done.stdout + done.stderr
