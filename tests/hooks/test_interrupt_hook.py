"""InterruptHook within one process, and on two ranks."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from mmengine.hooks import Hook
from ranks import run_ranks
from toys import by_epoch, hook_config, runner_config, train

from mmkd_plugin.hooks import InterruptHook

HOOK = dict(type='mmkd_plugin.InterruptHook')


class Kill(Hook):
    """Signals its own process after the iteration of this number."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def epochs(folder, *hooks, until=3, **kwargs):
    kwargs.setdefault('default_hooks', dict(checkpoint=dict(type='CheckpointHook', interval=1)))
    return runner_config(
        folder,
        hook_config(),
        HOOK,
        *hooks,
        **by_epoch(until),
        param_scheduler=[dict(type='MultiStepLR', milestones=[1, 2], by_epoch=True)],
        **kwargs,
    )


def same(a, b):
    a, b = (torch.load(path, weights_only=False) for path in (a, b))
    assert a['meta']['iter'] == b['meta']['iter'] and a['meta']['epoch'] == b['meta']['epoch']
    assert all(torch.equal(a['state_dict'][key], b['state_dict'][key]) for key in a['state_dict'])
    assert a['param_schedulers'] == b['param_schedulers']


@pytest.fixture(autouse=True)
def nobody_elses_handlers():
    """A handler that an earlier test has left in this process would be respected."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('iteration', [4, 5, 7])
def test_any_place_of_an_epoch(tmp_path, iteration):
    """At its first, an inner and its last batch."""
    train(epochs(tmp_path / 'through'))
    with pytest.raises(SystemExit) as end:
        train(epochs(tmp_path / 'run'), Kill(iteration))
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (tmp_path / 'run' / f'iter_{iteration + 1}.pth').is_file()
    seen = []

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append((runner.epoch, batch_idx))

    train(epochs(tmp_path / 'run', resume=True), Watch())
    assert seen == [divmod(i, 4) for i in range(iteration + 1, 12)]
    same(tmp_path / 'through' / 'epoch_3.pth', tmp_path / 'run' / 'epoch_3.pth')
    assert not list((tmp_path / 'run').glob('iter_*'))


def test_interrupted_twice_one_file_is_left(tmp_path):
    for iteration in (4, 5):
        with pytest.raises(SystemExit):
            train(epochs(tmp_path, resume=iteration == 5), Kill(iteration))
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_6.pth']


def test_the_file_of_another_work_dir_stays(tmp_path):
    with pytest.raises(SystemExit):
        train(epochs(tmp_path / 'first'), Kill(4))
    file = tmp_path / 'first' / 'iter_5.pth'
    with pytest.raises(SystemExit):
        train(epochs(tmp_path / 'second', load_from=str(file), resume=True), Kill(5))
    train(epochs(tmp_path / 'third', load_from=str(file), resume=True))
    assert file.is_file() and (tmp_path / 'second' / 'iter_6.pth').is_file()


def test_a_checkpoint_hook_that_counts_iterations_saves_itself(tmp_path):
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=100, max_keep_ckpts=1)
    with pytest.raises(SystemExit):
        train(epochs(tmp_path, default_hooks=dict(checkpoint=checkpoint)), Kill(5))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_6.pth']
    train(epochs(tmp_path, default_hooks=dict(checkpoint=checkpoint), resume=True))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_12.pth']


def test_accumulated_gradients_are_used_first(tmp_path):
    optimizer = dict(optimizer=dict(type='SGD', lr=0.05), accumulative_counts=2)
    with pytest.raises(SystemExit):
        train(epochs(tmp_path, optim_wrapper=optimizer), Kill(4))
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_6.pth']


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    class Poison(Hook):
        priority = 'HIGH'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 5:
                next(runner.model.parameters()).data.fill_(float('nan'))

    with pytest.raises(FloatingPointError, match='epoch_1.pth was looked at'):
        train(epochs(tmp_path), Kill(5), Poison())
    assert not list(tmp_path.glob('iter_*'))


def test_another_handler_is_left_alone(tmp_path):
    mine = []
    before = signal.signal(signal.SIGTERM, lambda *args: mine.append(args))
    try:
        train(epochs(tmp_path, until=1), Kill(1))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(mine) == 1 and (tmp_path / 'epoch_1.pth').is_file()


@pytest.mark.parametrize('signals', ['SIGTERM', ['SIGNONE'], ['signal']])
def test_bad_signals_are_refused(signals):
    with pytest.raises(ValueError, match='must be a list of names'):
        InterruptHook(signals)


RANKS = """
import os, signal, torch.distributed as dist
dist.init_process_group('gloo')
from hooks import test_interrupt_hook as case
from mmengine.hooks import Hook
rank = dist.get_rank()
config = case.epochs({work!r}, resume={resume}, launcher='pytorch', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, find_unused_parameters=True))
stops = []
try:
    case.train(config, *([case.Kill(1)] if rank == 1 and not {resume} else []))
except SystemExit as end:
    stops.append(end.code)
assert stops == ([] if {resume} else [143]), stops
"""


def test_one_signalled_rank_stops_all_at_the_same_iteration(tmp_path):
    run_ranks(RANKS.format(work=str(tmp_path), resume=False))
    (saved,) = tmp_path.glob('iter_*.pth')
    assert 3 <= torch.load(saved, weights_only=False)['meta']['iter'] <= 4
    run_ranks(RANKS.format(work=str(tmp_path), resume=True))
    assert (tmp_path / 'epoch_3.pth').is_file() and not saved.exists()


BLAME = """
import torch, torch.distributed as dist
dist.init_process_group('gloo')
from mmengine.hooks import Hook
from toys import hook_config, runner_config, train

class Poison(Hook):
    priority = 'VERY_HIGH'
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if dist.get_rank() == 1:
            runner.model.module.distiller.teacher.model.neck.convs[0].bias.data.fill_(float('nan'))

config = runner_config({work!r}, hook_config(), launcher='pytorch', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, find_unused_parameters=True))
try:
    train(config, Poison())
except FloatingPointError as error:
    assert dist.get_rank() == 1 and 'on rank 1 of 2 in the teacher' in str(error), error
    open({work!r} + '/told', 'w').write('x')
except RuntimeError:
    assert dist.get_rank() == 0  # its peer has gone
"""


def test_the_message_names_the_rank_to_blame(tmp_path):
    run_ranks(BLAME.format(work=str(tmp_path)))
    assert (tmp_path / 'told').is_file()
