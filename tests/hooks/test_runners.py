"""Runners built in Python, FlexibleRunner and its strategies, and models in unusual wrappers."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine._strategy import BaseStrategy, SingleDeviceStrategy
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import STRATEGIES
from mmengine.runner import FlexibleRunner, Runner
from ranks import run_ranks
from toys import TERM, hook_config, runner_config, toy_model, train

from mmkd_plugin.hooks.runner_model import refuse_unfit_model
from mmkd_plugin.taps import TapError


class Keep(Hook):
    """Keeps what is gone after the run: connectors, and what trained them."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.first = {k: v.clone() for k, v in weights(runner.model).items()}

    def after_train(self, runner):
        self.last = {k: v.clone() for k, v in weights(runner.model).items()}
        self.groups = copy.deepcopy([len(g['params']) for g in groups(runner)])
        self.rates = [g['lr'] for g in groups(runner)]

    @property
    def trained(self):
        moved = [not torch.equal(self.first[k], self.last[k]) for k in self.last if 'distil' in k]
        return bool(moved) and all(moved)


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def groups(runner):
    return runner.optim_wrapper.optimizer.param_groups


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run(config, flexible=False, **arguments):
    """Trains and returns what `Keep` kept."""
    run.count = getattr(run, 'count', 0) + 1
    config = copy.deepcopy(config)
    config.experiment_name = f'runners_{run.count}'
    if flexible:
        config.strategy = arguments.pop('strategy', dict(type='SingleDeviceStrategy'))
        config.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    config.update(arguments)
    runner = (FlexibleRunner if flexible else Runner).from_cfg(config)
    keep = Keep()
    runner.register_hook(keep)
    runner.train()
    assert not hasattr(runner.model, 'distiller')
    return keep


# -- FlexibleRunner --------------------------------------------------------------------------


def same_start(tmp_path):
    """A config whose student has the same weights under both: with old torch a FlexibleRunner
    draws two random numbers before it builds the model."""
    torch.save(dict(state_dict=toy_model(0).state_dict()), tmp_path / 'start.pth')
    start = str(tmp_path / 'start.pth')
    return runner_config(tmp_path / 'plain', hook_config(), load_from=start)


def test_flexible_runner_trains_connectors_as_a_runner_does(tmp_path):
    config = same_start(tmp_path)
    plain = run(config)
    config.work_dir = str(tmp_path / 'flexible')
    flexible = run(config, flexible=True)
    assert flexible.trained and same(plain.last, flexible.last)
    assert plain.rates == flexible.rates and plain.groups == flexible.groups


def test_flexible_runner_scales_and_accumulates(tmp_path):
    config = same_start(tmp_path)
    config.optim_wrapper.accumulative_counts = 2
    config.auto_scale_lr = dict(enable=True, base_batch_size=4)
    plain = run(config)
    config.work_dir = str(tmp_path / 'flexible')
    flexible = run(config, flexible=True)
    assert flexible.trained and plain.rates == flexible.rates == [0.05 * 2 / 4] * len(plain.rates)
    assert same(plain.last, flexible.last)


def test_flexible_runner_resumes_exactly(tmp_path):
    config = runner_config(tmp_path / 'whole', hook_config(), max_iters=4)
    config.train_dataloader.sampler.shuffle = False
    whole = run(config, flexible=True)
    config.work_dir, config.train_cfg.max_iters = str(tmp_path / 'parts'), 2
    run(config, flexible=True)
    # the sampler starts anew, so let both halves see the same images
    config.train_cfg.max_iters = 4
    resumed = run(config, flexible=True, resume=True)
    assert not same(resumed.first, whole.first), 'nothing was loaded'
    assert same(resumed.last, whole.last)


def test_without_an_active_term_flexible_runner_trains_the_same(tmp_path):
    config = runner_config(tmp_path / 'plain')
    plain = run(config, flexible=True)
    config.work_dir = str(tmp_path / 'idle')
    config.custom_hooks = [hook_config(dict(TERM, weight=0.0))]
    idle = run(config, flexible=True)
    own = {k: v for k, v in idle.last.items() if 'distiller' not in k}
    assert same(plain.last, own) and len(own) < len(idle.last)


DDP = """
import toys, torch
import torch.distributed as dist
from mmengine.runner import FlexibleRunner
from hooks.test_runners import Keep
dist.init_process_group('gloo')
config = toys.runner_config('{out}', toys.hook_config(dict(toys.TERM, end=3)), max_iters=4)
config.strategy = dict(type='DDPStrategy', model_wrapper=dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
config.launcher, config.env_cfg = 'pytorch', dict(dist_cfg=dict(backend='gloo'))
config.experiment_name = 'ddp'
runner = FlexibleRunner.from_cfg(config)
keep = Keep()
runner.register_hook(keep)
runner.train()
assert keep.trained
torch.save(keep.last, f'{out}/{{dist.get_rank()}}.pth')
"""


def test_ddp_strategy_synchronises_connectors(tmp_path):
    run_ranks(DDP.format(out=tmp_path))
    a, b = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert same(a, b)


def test_other_strategies_are_refused_by_name(tmp_path):
    members = {k: v for k, v in vars(SingleDeviceStrategy).items() if not k.startswith('__')}
    foreign = type('EngineStrategy', (BaseStrategy,), members)  # as DeepSpeedStrategy is one
    STRATEGIES.register_module(module=foreign, force=True)
    config = runner_config(tmp_path, hook_config())
    with pytest.raises(ValueError, match='not work with EngineStrategy.*DDPStrategy'):
        run(config, flexible=True, strategy=dict(type='EngineStrategy'))


# -- a Runner built in Python ----------------------------------------------------------------


def build(config, optim_wrapper, **more):
    """A Runner that was given objects and dicts, and no config."""
    build.count = getattr(build, 'count', 0) + 1
    keep = Keep()
    runner = Runner(
        model=more.pop('model', config.model.to_dict()),
        optim_wrapper=optim_wrapper,
        work_dir=config.work_dir,
        train_dataloader=config.train_dataloader.to_dict(),
        train_cfg=config.train_cfg.to_dict(),
        default_hooks=config.default_hooks.to_dict(),
        randomness=dict(seed=7),
        experiment_name=f'built_{build.count}',
        custom_hooks=[hook_config(), keep],
        log_level='WARNING',
        **more,
    )
    return runner, keep


def test_a_runner_built_in_python_trains_connectors_as_one_of_a_config(tmp_path):
    config = runner_config(tmp_path, hook_config())
    expected = run(config)
    schedulers = [scheduler.to_dict() for scheduler in config.param_scheduler]
    runner, keep = build(config, config.optim_wrapper.to_dict(), param_scheduler=schedulers)
    runner.train()
    assert keep.trained and same(keep.last, expected.last)
    assert keep.rates == expected.rates and keep.groups == expected.groups


def test_connectors_join_a_finished_optimizer(tmp_path):
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner, keep = build(runner_config(tmp_path), OptimWrapper(optimizer), model=model)
    runner.train()
    assert keep.trained and runner.optim_wrapper.optimizer is optimizer


def test_the_name_of_a_group_is_no_difference(tmp_path):
    model = toy_model()
    neck = {id(p) for p in model.neck.parameters()}
    others = [p for p in model.parameters() if id(p) not in neck]
    parts = [dict(params=others), dict(params=model.neck.parameters(), name='neck')]
    runner, keep = build(
        runner_config(tmp_path), OptimWrapper(torch.optim.SGD(parts, lr=0.1)), model=model
    )
    runner.train()
    assert keep.trained


def test_where_connectors_belong_must_be_clear(tmp_path):
    model = toy_model()
    parts = [dict(params=model.neck.parameters()), dict(params=model.bbox_head.parameters(), lr=1)]
    one = OptimWrapper(torch.optim.SGD(parts, lr=0.1))
    runner, _ = build(runner_config(tmp_path), one, model=model)
    with pytest.raises(ValueError, match=r'groups differ \(lr=0.1 and 1\).*Runner.from_cfg'):
        runner.train()
    assert not hasattr(model, 'distiller')

    several = OptimWrapperDict(
        neck=OptimWrapper(torch.optim.SGD(model.neck.parameters(), lr=0.1)),
        head=OptimWrapper(torch.optim.SGD(model.bbox_head.parameters(), lr=0.1)),
    )
    runner, _ = build(runner_config(tmp_path), several, model=model)
    with pytest.raises(ValueError, match=r'optimizers \(neck, head\).*Runner.from_cfg'):
        runner.train()


def test_the_whole_config_beside_it_lets_both_be_built_again(tmp_path):
    config = runner_config(tmp_path, hook_config())
    config.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(distiller=dict(lr_mult=0.1)))
    settings = dict(
        optim_wrapper=config.optim_wrapper.to_dict(),
        param_scheduler=[scheduler.to_dict() for scheduler in config.param_scheduler],
    )
    runner, keep = build(config, **copy.deepcopy(settings), cfg=copy.deepcopy(settings))
    runner.train()
    assert keep.trained and {round(rate, 6) for rate in keep.rates} == {0.05, 0.005}


# -- what stands around or is done to the student ------------------------------------------------


@pytest.mark.parametrize('name', ['FullyShardedDataParallel', 'MMSeparateDistributedDataParallel'])
def test_wrappers_that_leave_no_ordinary_student_are_refused_by_name(name):
    wrapper = type('Own', (type(name, (), {}),), {})()
    with pytest.raises(ValueError, match=f'not work with a model in {name}: it .* Take MMDistr'):
        refuse_unfit_model(SimpleNamespace(model=wrapper))


def test_a_compiled_model_is_refused(tmp_path):
    model = torch.compile(toy_model(), backend='eager')
    optim = dict(optimizer=dict(type='SGD', lr=0.1))
    runner, _ = build(runner_config(tmp_path), optim, model=model)
    with pytest.raises(ValueError, match='torch.compile.*compile=True in the config'):
        runner.train()


@pytest.mark.parametrize('tap', ['backbone.stage', 'backbone.stage.1'])
def test_a_tap_in_a_part_whose_forward_is_replaced_is_refused(tmp_path, tap):
    term = dict(TERM, loss=dict(type='CWDLoss'), student=tap)
    config = runner_config(tmp_path, hook_config(term), efficient_conv_bn_eval='backbone')
    with pytest.raises(TapError, match=f"{tap}' lies inside 'backbone'.*efficient_conv_bn_eval"):
        train(config)


@pytest.mark.parametrize('tap', ['backbone', 'neck.convs.*'])
def test_a_tap_behind_it_is_as_ever(tmp_path, tap):
    term = dict(TERM, student=tap)
    plain = run(runner_config(tmp_path / 'plain', hook_config(term)))
    config = runner_config(tmp_path / 'traced', hook_config(term))
    traced = run(config, efficient_conv_bn_eval=['backbone'])
    assert traced.trained
    for key, value in plain.last.items():
        torch.testing.assert_close(value, traced.last[key], atol=1e-5, rtol=1e-4)
