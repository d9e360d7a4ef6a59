"""A step with an outsized gradient, where nothing clips: scaled down, and everything else left."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import LinearLR, OptimWrapper, OptimWrapperDict
from ranks import run_ranks
from torch import nn
from toys import TERM, hook_config, runner_config, toy_model, train

from mmkd_plugin.cli import arguments
from mmkd_plugin.cli.arguments import add_distillation_arguments
from mmkd_plugin.cli.errors import UsageError
from mmkd_plugin.hooks.connector_steps import FLOOR, LARGEST, ConnectorLimit
from mmkd_plugin.hooks.optimizer_step import BeforeStep
from mmkd_plugin.hooks.spikes import SPIKE, SpikeLimit

AUTO = dict(TERM, weight='auto')
RATE = 1e-3
SGD = dict(optimizer=dict(type='SGD', lr=RATE))


class Spike(Hook):
    """Multiplies the gradient of the student in one step, and notes how far each step goes."""

    priority = 'VERY_LOW'  # wrapped last, called first: the limit sees what this has made

    def __init__(self, at: int, factor: float = 1e5, connectors: bool = False) -> None:
        self.at, self.factor, self.connectors = at, factor, connectors
        self.moved: list[float] = []

    def before_train(self, runner):
        self.runner = runner
        BeforeStep(runner.optim_wrapper.optimizer, self.before_step)

    def watched(self):
        named = self.runner.model.named_parameters()
        return [p for name, p in named if name.startswith('distiller.') == self.connectors]

    def before_step(self, optimizer):
        for parameter in self.watched():
            if parameter.grad is not None and self.runner.iter == self.at:
                parameter.grad *= self.factor
        self.before = [p.detach().clone() for p in self.watched()]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        steps = [(a - b.detach()).flatten() for a, b in zip(self.before, self.watched())]
        self.moved.append(float(torch.cat(steps).norm()))


def run(folder: Path, *terms: dict, spike: Spike | None = None, iters: int = 36, **options):
    hook = hook_config(*terms, **options.pop('hook', {}))
    settings = dict(optim_wrapper=SGD, param_scheduler=[], log_level='INFO', **options)
    config = runner_config(folder, hook, max_iters=iters, **settings)
    return train(config, *([spike] if spike else []))


def log_of(folder: Path) -> str:
    return ''.join(path.read_text() for path in sorted(folder.rglob('*.log')))


def saved(folder: Path, iters: int) -> dict:
    return torch.load(folder / f'iter_{iters}.pth', weights_only=False)


def limit_of(file: dict) -> float | None:
    return file['distiller'].get('spikes', {}).get('max_norm')


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_spike_is_scaled_down_to_the_limit_and_every_other_step_stays(tmp_path):
    limited, free = Spike(at=33), Spike(at=33)
    run(tmp_path / 'limited', AUTO, spike=limited)
    run(tmp_path / 'free', AUTO, spike=free, hook=dict(limit_spikes=False))
    log = log_of(tmp_path / 'limited')
    usual = float(re.search(r"usual norm of the task's is (\S+),", log)[1])
    limit = float(re.search(r'clip_grad=dict\(max_norm=([^)]+)\)', log)[1])
    assert limit == pytest.approx(SPIKE * usual, rel=0.05)
    assert limit_of(saved(tmp_path / 'limited', 36)) == limit
    assert limited.moved[:33] == free.moved[:33]  # exactly
    assert free.moved[33] > 100 * RATE * limit
    assert limited.moved[33] == pytest.approx(RATE * limit, rel=1e-3)
    assert 'scaled down to it in 1 of 6 updates' in log  # the weight is found in the 30th step
    assert 'scaled down' not in log_of(tmp_path / 'free')


def test_a_small_weight_of_the_task_leaves_the_limit(tmp_path):
    """Beside it a step is mostly the terms': a limit that shrank with it would scale all steps."""
    kd = dict(TERM, name='other', weight=0.5)
    run(tmp_path / 'whole', AUTO)
    run(tmp_path / 'small', AUTO, kd, hook=dict(task_weight=0.1))
    whole, small = (limit_of(saved(tmp_path / name, 36)) for name in ('whole', 'small'))
    assert small == pytest.approx(whole, rel=0.5)


def test_without_a_spike_nothing_changes(tmp_path):
    run(tmp_path / 'limited', AUTO)
    run(tmp_path / 'free', AUTO, hook=dict(limit_spikes=False))
    limited, free = (saved(tmp_path / name, 36) for name in ('limited', 'free'))
    assert same(limited['state_dict'], free['state_dict'])
    assert 'in 0 of 6 updates' in log_of(tmp_path / 'limited')


@pytest.mark.parametrize(
    'options',
    [
        dict(terms=[TERM]),
        dict(terms=[AUTO], optim_wrapper=dict(SGD, clip_grad=dict(max_norm=1e9))),
    ],
    ids=['numbers', 'clipped'],
)
def test_runs_that_find_no_weight_or_clip_are_left_alone(tmp_path, options):
    options, spike = dict(options), Spike(at=33, factor=1e4)
    terms, wrapper = options.pop('terms'), options.pop('optim_wrapper', SGD)
    config = runner_config(
        tmp_path, hook_config(*terms), max_iters=34, optim_wrapper=wrapper, param_scheduler=[]
    )
    train(config, spike)
    assert spike.moved[33] > 1000 * spike.moved[32]
    assert limit_of(saved(tmp_path, 34)) is None


def test_a_number_limits_any_run_from_its_first_step_on(tmp_path):
    spike = Spike(at=1)
    run(tmp_path, TERM, spike=spike, iters=3, hook=dict(limit_spikes=0.5))
    assert max(spike.moved) <= RATE * 0.5 * 1.001


@pytest.mark.parametrize('wish', ['auto', 0.5, False])
@pytest.mark.parametrize('term', [AUTO, TERM], ids=['found', 'number'])
def test_a_connector_moves_by_a_part_of_its_size_at_most(tmp_path, term, wish):
    spike = Spike(at=3, connectors=True)
    run(tmp_path, term, spike=spike, iters=5, hook=dict(limit_spikes=wish))
    limited = wish == 0.5 or (wish == 'auto' and term is AUTO)
    size = [p.detach().clone() for p in spike.before]  # of each parameter before the last step
    most = LARGEST * torch.cat([p.flatten() for p in size]).norm()
    assert (spike.moved[3] < 1.1 * most) == limited
    assert ('of its own size in 1 updates' in log_of(tmp_path)) == limited


def connector(value: float = 0.1) -> tuple[nn.Conv2d, ConnectorLimit]:
    module = nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
            parameter.grad = torch.full_like(parameter, 8.0)
    return module, ConnectorLimit((f'distiller.{n}', p) for n, p in module.named_parameters())


def step_of(module: nn.Module, rate: float = 1.0) -> float:
    parts = [(rate * p.grad).flatten() for p in module.parameters()]
    return float(torch.cat(parts).norm())


@pytest.mark.parametrize('split', [False, True], ids=['one group', 'a group for each parameter'])
@pytest.mark.parametrize('overflow', [None, 0.0, 1.0], ids=['no scale', 'scaled', 'overflow'])
def test_a_connector_is_limited_as_a_whole(split, overflow):
    module, limit = connector()
    params = list(module.parameters())
    groups = [dict(params=[p], lr=0.5) for p in params] if split else [dict(params=params, lr=0.5)]
    groups.append(dict(params=[nn.Parameter(torch.ones(1))]))  # of an optimizer without a rate
    scale = counts = None
    if overflow is not None:
        scale, counts = torch.tensor(1024.0), torch.tensor(overflow) == 0
        for parameter in params:
            parameter.grad *= 1024
    limit.before_step(groups, scale, counts)
    size = LARGEST * 0.1 * 20**0.5
    assert step_of(module, 0.5) / (1 if scale is None else 1024) == pytest.approx(size, rel=1e-4)
    assert len({float(g) for p in params for g in p.grad.flatten()}) == 1  # its direction stays
    assert int(limit.limited) == (overflow != 1.0)


def test_a_connector_of_zeros_may_begin():
    module, limit = connector(0.0)
    limit.before_step([dict(params=list(module.parameters()), lr=1.0)], None, None)
    assert step_of(module) == pytest.approx(LARGEST * FLOOR * 20**0.5, rel=1e-4)


@pytest.mark.parametrize('gradient', [8.0, 3e38, float('inf')])
def test_a_rate_of_zero_leaves_gradients_as_they_are(gradient):
    module, limit = connector()
    for parameter in module.parameters():
        parameter.grad.fill_(gradient)
    limit.before_step([dict(params=list(module.parameters()), lr=0.0)], None, None)
    assert all((p.grad == gradient).all() for p in module.parameters())


def test_connectors_that_are_not_met_by_the_limit_learn_the_same(tmp_path, monkeypatch):
    met = []
    before_step = ConnectorLimit.before_step
    monkeypatch.setattr(
        ConnectorLimit, 'before_step', lambda *args: (before_step(*args), met.append(1))
    )
    run(tmp_path / 'limited', AUTO, iters=12)
    assert len(met) == 12
    run(tmp_path / 'free', AUTO, iters=12, hook=dict(limit_spikes=False))
    limited, free = (saved(tmp_path / name, 12)['distiller'] for name in ('limited', 'free'))
    assert same(limited['connectors'], free['connectors'])


@pytest.mark.parametrize('stop', [20, 32], ids=['before it is found', 'after'])
def test_a_resumed_run_goes_on_exactly(tmp_path, stop):
    whole = run(tmp_path / 'whole', AUTO, spike=Spike(at=33))
    run(tmp_path / 'parts', AUTO, spike=Spike(at=33), iters=stop)
    # Told that it would be over, it has taken its weight from what it had.
    state = tmp_path / 'parts' / f'iter_{stop}.pth'
    file = torch.load(state, weights_only=False)
    if stop < 30:
        whole_file = saved(tmp_path / 'whole', stop)
        assert same(file['state_dict'], whole_file['state_dict'])
        state = tmp_path / 'whole' / f'iter_{stop}.pth'
    (tmp_path / 'rest').mkdir()
    run(tmp_path / 'rest', AUTO, spike=Spike(at=33), resume=True, load_from=str(state))
    ends = [saved(tmp_path / name, 36) for name in ('whole', 'rest')]
    assert same(*(end['state_dict'] for end in ends))
    assert limit_of(ends[0]) == limit_of(ends[1]) is not None
    assert whole.iter == 36


def test_the_plan_says_how_to_repeat_the_run(tmp_path):
    run(tmp_path, AUTO)
    limit = limit_of(saved(tmp_path, 36))
    assert f'--limit-spikes {limit:g}' in (tmp_path / 'distillation.txt').read_text()


def test_many_steps_above_the_limit_are_a_warning(tmp_path):
    run(tmp_path, TERM, iters=4, hook=dict(limit_spikes=1e-6))
    assert re.search(
        r'WARNING - The gradient was above 1e-06 .* in 4 of 4 updates', log_of(tmp_path)
    )


def test_a_number_that_has_no_effect_is_told_and_not_in_the_plan(tmp_path):
    config = runner_config(
        tmp_path,
        hook_config(AUTO, limit_spikes=0.5),
        max_iters=32,
        optim_wrapper=dict(SGD, clip_grad=dict(max_norm=1e9)),
    )
    train(config)
    assert 'limit_spikes=0.5 has no effect' in log_of(tmp_path)
    assert 'spikes' not in (tmp_path / 'distillation.txt').read_text()


def test_a_run_goes_on_with_its_limit_where_weights_have_become_numbers(tmp_path):
    run(tmp_path / 'auto', AUTO, iters=32)
    limit, weight = limit_of(saved(tmp_path / 'auto', 32)), 2.0
    for name, start, iters in (('one', 'auto/iter_32', 34), ('two', 'one/iter_34', 36)):
        file = str(tmp_path / f'{start}.pth')
        run(tmp_path / name, dict(TERM, weight=weight), iters=iters, resume=True, load_from=file)
        assert limit_of(saved(tmp_path / name, iters)) == limit
    log = log_of(tmp_path / 'two')
    assert f'Gradients above {limit:g} are scaled down' in log
    off = tmp_path / 'off'
    file = str(tmp_path / 'auto' / 'iter_32.pth')
    run(off, AUTO, iters=34, resume=True, load_from=file, hook=dict(limit_spikes=False))
    assert f'limit_spikes: {limit:g} then, False now' in log_of(off)


def test_a_file_that_knows_no_norms_gives_no_limit(tmp_path):
    """Of two terms one was found before it was saved: what is measured since is not the usual."""
    late = dict(AUTO, name='late', begin=31)
    run(tmp_path / 'old', AUTO, late, iters=32, hook=dict(limit_spikes=False))
    file = saved(tmp_path / 'old', 32)
    del file['distiller']['spikes']
    torch.save(file, tmp_path / 'old.pth')
    options = dict(resume=True, load_from=str(tmp_path / 'old.pth'))
    run(tmp_path / 'new', AUTO, late, iters=36, **options)
    assert 'spikes' not in saved(tmp_path / 'new', 36)['distiller']


def test_a_second_training_of_one_runner_looks_for_its_own_limit(tmp_path):
    runner = run(tmp_path, AUTO)
    (hook,) = (h for h in runner.hooks if hasattr(h, '_spikes'))
    assert hook._spikes.max_norm is None and hook._spikes._max_norm is None
    assert 'step' not in vars(runner.optim_wrapper.optimizer)


@pytest.mark.parametrize('overflow', [0.0, 1.0])
def test_gradients_that_a_fused_optimizer_has_still_to_unscale(monkeypatch, overflow):
    model, limit = toy_model(), SpikeLimit(2.0)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=1.0)
    for parameter in params:
        parameter.grad = torch.full_like(parameter, 1024.0)
    size = sum(p.numel() for p in params) ** 0.5
    assert size > 2.0
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(overflow)
    with monkeypatch.context() as patch:  # nothing may be read from the device
        patch.setattr(torch.Tensor, '__bool__', None)
        patch.setattr(torch.Tensor, 'item', None)
        limit._hook(params, ConnectorLimit([]))(optimizer)
    assert nn.utils.clip_grad_norm_(params, 1e9) == pytest.approx(2.0 * 1024, rel=1e-4)
    assert int(limit._limited) == (not overflow)  # such a step is skipped


def test_of_several_optimizers_those_without_clipping_are_limited():
    model = toy_model()
    parts = dict(backbone=model.backbone, neck=model.neck)
    wrappers = OptimWrapperDict(
        **{
            name: OptimWrapper(
                torch.optim.SGD(part.parameters(), lr=1.0),
                clip_grad=dict(max_norm=7.0) if name == 'neck' else None,
            )
            for name, part in parts.items()
        }
    )
    limit = SpikeLimit(0.5)
    limit.begin(SimpleNamespace(model=model, optim_wrapper=wrappers))
    assert ['step' in vars(wrappers[name].optimizer) for name in parts] == [True, False]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in model.backbone.parameters()]
    wrappers['backbone'].optimizer.step()
    steps = [(a - b.detach()).flatten() for a, b in zip(before, model.backbone.parameters())]
    assert torch.cat(steps).norm() == pytest.approx(0.5, rel=1e-3)


def test_a_function_before_each_step_where_pytorch_calls_no_hooks():
    """Its compiler marks the steps of all optimizers so, up to version 2.2."""

    class Compiled(torch.optim.SGD):
        def step(self):
            seen.append('step')

    Compiled.step.hooked = True
    seen = []
    optimizer = Compiled([nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append('of PyTorch'))
    first, second = (BeforeStep(optimizer, lambda _, n=name: seen.append(n)) for name in 'ab')
    optimizer.step()
    assert seen == ['b', 'a', 'step']
    first.remove()  # wrapped again meanwhile: it stays, and does nothing
    optimizer.step()
    assert seen[3:] == ['b', 'step']
    second.remove()
    optimizer.step()
    assert seen[5:] == ['step']


def test_a_wrapped_step_is_given_back():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    own = torch.optim.lr_scheduler.ConstantLR(optimizer) and vars(optimizer).get('step')
    handle = BeforeStep(optimizer, lambda _: None)
    assert getattr(optimizer.step, '_with_counter', None) == getattr(own, '_with_counter', None)
    handle.remove()
    assert vars(optimizer).get('step') is own


@pytest.mark.parametrize('scheduler', [LinearLR, torch.optim.lr_scheduler.ConstantLR])
def test_a_scheduler_may_come_later(scheduler):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    own, seen = inspect.signature(optimizer.step), []
    BeforeStep(optimizer, seen.append)
    assert inspect.signature(optimizer.step) == own  # a GradScaler looks at it
    schedule = scheduler(optimizer)
    optimizer.param_groups[0]['params'][0].grad = torch.ones(1)
    optimizer.step()
    schedule.step()
    assert seen == [optimizer]


RANKS = """
import torch, torch.distributed as dist
dist.init_process_group('gloo')
from hooks import test_spikes as case
from mmengine.runner import Runner
from toys import hook_config, runner_config
config = runner_config(
    '{out}', hook_config(case.AUTO), max_iters=34, optim_wrapper=case.SGD, param_scheduler=[],
    launcher='pytorch', model_wrapper_cfg=dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
runner = Runner.from_cfg(config)
class Note(case.Hook):
    priority = 'LOWEST'
    def after_train(self, runner):
        (hook,) = (h for h in runner.hooks if hasattr(h, '_spikes'))
        with open(f'{out}/rank{{dist.get_rank()}}', 'w') as file:
            file.write(repr(hook._spikes.max_norm))
runner.register_hook(Note())
runner.train()
"""


def test_all_ranks_find_one_limit(tmp_path):
    run_ranks(RANKS.format(out=tmp_path))
    limits = [float((tmp_path / f'rank{rank}').read_text()) for rank in (0, 1)]
    assert limits[0] == limits[1] > 0


@pytest.mark.parametrize('wrong', [0, -1.0, float('nan'), float('inf'), True, 'on', None, [1.0]])
def test_what_is_no_limit_is_refused(wrong):
    with pytest.raises(ValueError, match='limit_spikes'):
        SpikeLimit(wrong)


@pytest.mark.parametrize(('text', 'wish'), [('auto', 'auto'), ('off', False), ('3', 3.0)])
def test_the_flag_says_what_the_key_does(text, wish):
    parser = argparse.ArgumentParser()
    add_distillation_arguments(parser)
    assert arguments._method(parser.parse_args(['--limit-spikes', text]))['limit_spikes'] == wish


@pytest.mark.parametrize('text', ['on', '0', '-2', 'inf', 'nan'])
def test_a_flag_that_is_no_limit_is_refused(text):
    parser = argparse.ArgumentParser()
    add_distillation_arguments(parser)
    with pytest.raises(UsageError, match='--limit-spikes'):
        arguments._method(parser.parse_args([f'--limit-spikes={text}']))
