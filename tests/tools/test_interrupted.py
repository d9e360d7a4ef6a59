"""SIGTERM and Ctrl-C: tools/train.py saves, stops, and goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

REPO = Path(__file__).resolve().parents[2]
HELPERS = REPO / 'tests' / 'helpers'
EPOCHS = dict(by_epoch=True, max_epochs=3)
ITERATIONS = dict(by_epoch=False, max_iters=12)

# Tells where training is, and takes its time, so that a signal can be sent at a known iteration.
BEACON = """
import os, time
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class Beacon(Hook):
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        Path(os.environ['BEACON']).write_text(str(runner.iter))
        time.sleep(float(os.environ.get('PACE', 0)))
"""


def write_config(folder: Path, train_cfg: dict, workers: int = 0) -> Path:
    from toys import hook_config, runner_config

    by_epoch = train_cfg['by_epoch']
    loader = dict(
        dataset=dict(type='ToyImages', length=8),
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
        batch_size=2,
        num_workers=workers,
        collate_fn=dict(type='pseudo_collate'),
    )
    config = runner_config(
        folder / 'unused',
        dict(type='Beacon'),
        hook_config(),
        model=dict(type='ToyDetector', dropout=0.3),
        train_cfg=train_cfg,
        train_dataloader=loader,
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=by_epoch, end=2)],
        log_processor=dict(by_epoch=by_epoch),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 100
            ),
            logger=dict(type='LoggerHook', interval=1),
        ),
    )
    config.custom_imports = dict(
        imports=['toys', 'beacon', 'mmkd_plugin'], allow_failed_imports=False
    )
    (folder / 'beacon.py').write_text(BEACON)
    config.dump(folder / 'config.py')
    return folder / 'config.py'


def start(folder: Path, *options: str, work: str = 'run', pace: float = 0.0) -> subprocess.Popen:
    paths = [str(REPO), str(HELPERS), str(folder), os.environ.get('PYTHONPATH', '')]
    env = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(path for path in paths if path),
        BEACON=str(folder / 'beacon'),
        PACE=str(pace),
    )
    (folder / 'beacon').unlink(missing_ok=True)
    command = [sys.executable, str(REPO / 'tools' / 'train.py'), str(folder / 'config.py')]
    return subprocess.Popen(
        [*command, '--work-dir', str(folder / work), *options],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, the tests' children included.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def send_at(process: subprocess.Popen, folder: Path, number: int, iteration: int) -> None:
    end = time.monotonic() + 200
    beacon = folder / 'beacon'
    while not (beacon.is_file() and (beacon.read_text() or '-1') >= str(iteration)):
        assert process.poll() is None, process.communicate()[0][-2000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ('train_cfg', 'number', 'last', 'workers'),
    [
        (EPOCHS, signal.SIGTERM, 'epoch_3.pth', 0),
        pytest.param(ITERATIONS, signal.SIGINT, 'iter_12.pth', 1, marks=pytest.mark.slow),
    ],
)
def test_the_resumed_run_continues_exactly(tmp_path, monkeypatch, train_cfg, number, last, workers):
    from toys import train

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('BEACON', str(tmp_path / 'beacon'))
    monkeypatch.delitem(sys.modules, 'beacon', raising=False)
    config = Config.fromfile(write_config(tmp_path, train_cfg, workers))
    config.work_dir = str(tmp_path / 'through')
    config.custom_hooks.append(dict(type='mmkd_plugin.StepSeedHook'))
    train(config)

    process = start(tmp_path, '--seed-steps', pace=0.5)
    send_at(process, tmp_path, number, 5)  # the second batch of the second epoch
    out = process.communicate()[0]
    assert process.returncode == 128 + number, out[-2000:]
    name = signal.Signals(number).name
    assert name in out.splitlines()[-1] and '--resume' in out.splitlines()[-1]
    (saved,) = (tmp_path / 'run').glob('iter_*.pth')
    done = load(saved)['meta']['iter']
    assert done in (6, 7) and saved.name == f'iter_{done}.pth'
    assert (tmp_path / 'run' / 'last_checkpoint').read_text() == str(saved)

    resumed = start(tmp_path, '--seed-steps', '--resume')
    out = resumed.communicate()[0]
    assert resumed.returncode == 0, out[-2000:]
    a, b = (load(tmp_path / work / last) for work in ('through', 'run'))
    for key in ('epoch', 'iter'):
        assert a['meta'][key] == b['meta'][key]
    for key, value in a['state_dict'].items():
        assert torch.equal(value, b['state_dict'][key]), key
    for key, value in a['distiller']['connectors'].items():
        assert torch.equal(value, b['distiller']['connectors'][key]), key
    for old, new in zip(a['param_schedulers'], b['param_schedulers'], strict=True):
        assert old == new
    if train_cfg is EPOCHS:  # superseded by the next one
        assert not saved.exists()


@pytest.mark.parametrize('options', [(), ('--no-save-on-signal',)])
def test_a_second_signal_ends_at_once(tmp_path, options):
    write_config(tmp_path, EPOCHS)
    process = start(tmp_path, *options, pace=60)
    send_at(process, tmp_path, signal.SIGTERM, 0)
    if not options:
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_a_second_run_in_the_work_dir_is_refused(tmp_path):
    write_config(tmp_path, EPOCHS)
    first = start(tmp_path, pace=60)
    send_at(first, tmp_path, 0, 0)
    beacon = (tmp_path / 'beacon').read_text()
    second = start(tmp_path)
    out = second.communicate()[0]
    assert second.returncode == 1
    assert f'in use by another run (process {first.pid} on ' in out.splitlines()[-1]
    assert beacon and not (tmp_path / 'beacon').exists()  # it did not train
    first.kill()
    first.communicate()
    third = start(tmp_path)  # the lock of a dead process holds nobody up
    assert third.wait(200) == 0, third.communicate()[0][-2000:]
    assert not (tmp_path / 'run' / 'run.lock').exists()


@pytest.mark.parametrize('place', ['/proc/here', '/dev/null/here'])
def test_a_work_dir_that_cannot_be_written_is_one_sentence(tmp_path, place):
    write_config(tmp_path, EPOCHS)
    process = start(tmp_path, '--work-dir', place)
    out = process.communicate()[0]
    assert process.returncode == 1
    assert f'Nothing can be written to the work dir {place}' in out.splitlines()[-1]
    assert 'Traceback' not in out


@pytest.mark.parametrize('option', [('--resume',), ('--resume', 'run/iter_4.pth')])
def test_resuming_from_nothing_usable_stops_with_a_sentence(tmp_path, option):
    write_config(tmp_path, ITERATIONS)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'iter_4.pth').write_bytes(b'PK\x03\x04 cut')
    option = [str(tmp_path / part) if '/' in part else part for part in option]
    process = start(tmp_path, *option)
    out = process.communicate()[0]
    assert process.returncode == 1 and 'iter_4.pth' in out.splitlines()[-1]
    assert 'truncated' in out.splitlines()[-1] and 'Traceback' not in out
    assert (tmp_path / 'run' / 'iter_4.pth').read_bytes() == b'PK\x03\x04 cut'
