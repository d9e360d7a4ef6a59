"""What MMEngine loads into a model: read safely, checked to fit, refused where it does not."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from damage import Calls, flip, inside_a_tensor
from toys import hook_config, runner_config, toy_model, train

from mmkd_plugin.errors import CheckpointError
from mmkd_plugin.hooks import loaded_weights
from mmkd_plugin.hooks.loaded_weights import ForeignFileError, check_test, check_training

REPO = Path(__file__).resolve().parents[1]
DIGITS = REPO / 'configs/classification/digits/resnet8-narrow_digits.py'


def file(path: Path, state: dict) -> str:
    torch.save(dict(state_dict=state), path)
    return str(path)


@pytest.fixture
def lines(monkeypatch) -> list:
    said = []
    monkeypatch.setattr(loaded_weights, 'print_log', lambda *args: said.append(args))
    return said


# -- distilled runs ----------------------------------------------------------------------------


def test_load_from_of_another_width_is_refused(tmp_path):
    path = file(tmp_path / 'wide.pth', toy_model(1, width=7).state_dict())
    with pytest.raises(ForeignFileError, match=r'load_from=.*wide.pth.*another network.*in the'):
        train(runner_config(tmp_path, hook_config(), load_from=path))


def test_a_damaged_load_from_is_refused_whoever_reads_it(tmp_path):
    path = tmp_path / 'start.pth'
    file(path, toy_model(1).state_dict())
    flip(path, inside_a_tensor(path), 6)
    with pytest.raises(CheckpointError, match='checksum'):
        train(runner_config(tmp_path, hook_config(), load_from=str(path)))


@pytest.mark.parametrize(
    ('entry', 'value'),
    [('running_mean', float('nan')), ('running_var', -1.0), ('weight', math.inf)],
)
def test_a_start_from_a_diverged_run_is_refused(tmp_path, entry, value):
    """No later look would find it: what is not finite at the beginning may stay so."""
    state = toy_model(1).state_dict()
    state[f'backbone.stem.1.{entry}'][1] = value
    path = file(tmp_path / 'bad.pth', state)
    with pytest.raises(CheckpointError, match=rf'load_from=.*backbone.stem.1.{entry} has'):
        train(runner_config(tmp_path, hook_config(), load_from=path))


def test_another_head_is_a_start_and_what_fits_is_counted(tmp_path, lines):
    """Usual fine-tuning: a detector of other classes."""
    path = file(tmp_path / 'five.pth', toy_model(1, classes=5).state_dict())
    train(runner_config(tmp_path, hook_config(), load_from=path))
    text, _, level = lines[0]
    assert 'bbox_head.cls.weight is (5, 6, 1, 1) in the file' in text and level == logging.WARNING
    model = toy_model(1)
    wanted = [k for k in model.state_dict() if not k.endswith('num_batches_tracked')]
    shapes = {k: v.shape for k, v in toy_model(1, classes=5).state_dict().items()}
    other = [k for k in wanted if shapes[k] != model.state_dict()[k].shape]
    assert f'{len(wanted) - len(other)} entries of the model are filled' in text
    assert f'{len(other)} have another shape' in text


def test_a_resumed_run_needs_its_own_shapes():
    model, other = toy_model(1), toy_model(1, classes=5)
    checkpoint = dict(state_dict=other.state_dict())
    check_training(model, checkpoint, 'the file', resume=False)
    with pytest.raises(ForeignFileError, match='bbox_head.cls'):
        check_training(model, checkpoint, 'the file', resume=True)


# -- tests -------------------------------------------------------------------------------------


def test_a_test_needs_all_weights():
    model, state = toy_model(1), toy_model(2).state_dict()
    check_test(model, dict(state_dict=state), 'the file')
    check_test(model, {f'module.{k}': v for k, v in state.items()}, 'the file')
    check_test(model, dict(state_dict=dict(state, ema_part=torch.zeros(1))), 'the file')
    lacking = {k: v for k, v in state.items() if not k.startswith('neck')}
    deeper = dict(state, **{'backbone.stage.9.weight': torch.zeros(1)})
    for wrong, word in (
        (toy_model(1, classes=5).state_dict(), 'bbox_head.cls'),
        (lacking, 'neck.'),
        (deeper, 'backbone.stage.9.weight'),
        (dict(model=state), 'missing'),
    ):
        with pytest.raises(ForeignFileError, match=word):
            check_test(model, dict(state_dict=wrong), 'the file')


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / 'tools' / name), *map(str, arguments)]
    env = dict(os.environ, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1')
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env)


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
    """A checkpoint of the narrow digits student, as a run writes it."""
    pytest.importorskip('sklearn')
    from mmkd_plugin.model_config import load_model_config
    from mmkd_plugin.teacher import build_model

    path = tmp_path_factory.mktemp('weights') / 'student.pth'
    torch.save(dict(state_dict=build_model(load_model_config(DIGITS)).state_dict()), path)
    return path


def test_the_tool_tests_a_file_that_fits_and_no_other(weights, tmp_path):
    fine = tool('test.py', DIGITS, weights, '--work-dir', tmp_path)
    assert fine.returncode == 0, fine.stderr[-2000:]
    other = DIGITS.with_name('resnet14_digits.py')
    wrong = tool('test.py', other, weights, '--work-dir', tmp_path)
    last = (wrong.stdout + wrong.stderr).strip().splitlines()[-1]
    assert wrong.returncode != 0 and 'does not fit the model of the config' in last, last


@pytest.mark.parametrize('name', ['test.py', 'train.py'])
def test_the_tools_run_no_code_of_a_file(weights, tmp_path, name):
    mark = tmp_path / 'mark'
    contents = torch.load(weights, weights_only=False)
    torch.save(dict(contents, meta=Calls(os.system, (f'touch {mark}',))), tmp_path / 'bad.pth')
    flags = ['--work-dir', tmp_path]
    if name == 'test.py':
        done = tool(name, DIGITS, tmp_path / 'bad.pth', *flags)
    else:
        done = tool(name, DIGITS, *flags, '--resume', tmp_path / 'bad.pth')
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    assert done.returncode != 0 and not mark.exists()
    assert 'os.system' in last and 'made to do harm' in last, last


def test_a_checkpoint_of_a_run_is_resumed_by_the_safe_reader(tmp_path):
    """With logs of MMEngine in it, and optimizer and schedules."""
    from mmengine.runner import CheckpointLoader

    train(runner_config(tmp_path, hook_config(), max_iters=2))
    with loaded_weights.read_safely():
        reader = CheckpointLoader._get_checkpoint_loader('x.pth')
        assert reader.__module__ == loaded_weights.__name__
        runner = train(runner_config(tmp_path, hook_config(), max_iters=4, resume=True))
    reader = CheckpointLoader._get_checkpoint_loader('x.pth')
    assert reader.__module__ == 'mmengine.runner.checkpoint'
    assert runner.iter == 4
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 4
