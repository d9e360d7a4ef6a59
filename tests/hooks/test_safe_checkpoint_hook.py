"""A full disk while saving: the previous checkpoint stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import resource, signal, sys
sys.path[:0] = [{root!r}, {helpers!r}]
import toys
from mmengine.hooks import Hook
from mmengine.runner import Runner

class FillDisk(Hook):
    priority = 'VERY_HIGH'
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3:  # the second save meets the limit: files may no longer grow
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

config = toys.runner_config({work!r}, *{hooks}, max_iters=6, default_hooks=dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type={hook!r}, by_epoch=False, interval=2, max_keep_ckpts=1)))
runner = Runner.from_cfg(config)
runner.register_hook(FillDisk())
runner.train()
"""


def run(work: Path, hook: str, distil: bool = True) -> subprocess.CompletedProcess:
    code = SCRIPT.format(
        root=str(ROOT),
        helpers=str(ROOT / 'tests' / 'helpers'),
        work=str(work),
        hook=hook,
        hooks='[toys.hook_config()]' if distil else '[]',
    )
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


@pytest.mark.parametrize('hook', ['mmkd_plugin.SafeCheckpointHook', 'CheckpointHook'])
def test_the_old_checkpoint_survives_a_full_disk(tmp_path, hook):
    """In a distilled run with MMEngine's own hook, too: DistillHook makes it safe."""
    done = run(tmp_path, hook)
    assert done.returncode != 0
    assert 'The previous one is intact' in done.stderr
    assert [p.name for p in tmp_path.glob('*.pth')] == ['iter_2.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_2.pth')
    import torch

    assert torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']


def test_the_original_hook_would_have_lost_it(tmp_path):
    """Shows that the test above can fail: in a plain run MMEngine removes the old file first."""
    run(tmp_path, 'CheckpointHook', distil=False)
    assert not (tmp_path / 'iter_2.pth').exists()


@pytest.mark.parametrize('keep', [1, 2])
def test_old_checkpoints_are_removed_after_success(tmp_path, keep):
    from toys import hook_config, runner_config, train

    train(
        runner_config(
            tmp_path,
            hook_config(),
            max_iters=6,
            default_hooks=dict(
                checkpoint=dict(
                    type='mmkd_plugin.SafeCheckpointHook',
                    by_epoch=False,
                    interval=2,
                    max_keep_ckpts=keep,
                )
            ),
        )
    )
    assert len(list(tmp_path.glob('*.pth'))) == keep


@pytest.mark.parametrize('same', [True, False])
def test_what_another_run_saved_is_not_left_behind_by_a_kill(tmp_path, same):
    from toys import hook_config, runner_config, train

    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1)

    def config(name, **kwargs):
        hooks = dict(checkpoint=checkpoint)
        return runner_config(tmp_path / name, hook_config(), default_hooks=hooks, **kwargs)

    train(config('first', max_iters=4))
    file, folder = tmp_path / 'first' / 'iter_4.pth', 'first' if same else 'second'
    (tmp_path / folder).mkdir(exist_ok=True)
    other = tmp_path / folder / 'iter_1.pth'
    other.write_bytes(file.read_bytes())
    train(config(folder, max_iters=6, load_from=str(file), resume=True))
    assert other.exists() != same and (tmp_path / folder / 'iter_6.pth').is_file()


def test_a_run_killed_while_saving_can_be_resumed(tmp_path):
    from toys import hook_config, runner_config, train

    from mmkd_plugin.hooks import mend_last_checkpoint

    train(runner_config(tmp_path, hook_config(), max_iters=4))
    whole = (tmp_path / 'iter_4.pth').read_bytes()
    (tmp_path / 'iter_4.pth').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'last_checkpoint').write_text('')
    mend_last_checkpoint(tmp_path)
    assert not (tmp_path / 'iter_4.pth').exists()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_2.pth')
    train(runner_config(tmp_path, hook_config(), max_iters=4, resume=True))
    assert (tmp_path / 'iter_4.pth').read_bytes()[-22:-18] == b'PK\x05\x06'


def test_mending_leaves_a_sound_run_and_an_empty_folder_alone(tmp_path):
    from mmkd_plugin.hooks import mend_last_checkpoint

    mend_last_checkpoint(tmp_path)
    assert not list(tmp_path.iterdir())
    mend_last_checkpoint(tmp_path / 'missing')
