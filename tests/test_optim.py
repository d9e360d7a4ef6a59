"""Shampoo and SOAP through MMEngine; the tests skip without pytorch-optimizer."""

from __future__ import annotations

import sys

import pytest
import torch
from classification_toys import same, trained, weights
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mmkd_plugin.registry import OPTIMIZERS

NAMES = pytest.mark.parametrize('name', ['Shampoo', 'SOAP'])
QUICK = dict(
    Shampoo=dict(lr=0.05, start_preconditioning_step=1, preconditioning_compute_steps=2),
    SOAP=dict(lr=0.01, precondition_frequency=2),
)


def wrapper(model: nn.Module, **config):
    with DefaultScope.overwrite_default_scope('mmkd_plugin'):
        return build_optim_wrapper(model, config)


@NAMES
def test_missing_package_says_how_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, 'pytorch_optimizer', None)
    with pytest.raises(ModuleNotFoundError, match='pip install pytorch-optimizer'):
        OPTIMIZERS.build(dict(type=name, params=[nn.Parameter(torch.zeros(2))]))


@NAMES
def test_a_small_net_learns(name):
    pytest.importorskip('pytorch_optimizer')
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8 * 16, 3))  # fmt: skip
    x, y = torch.randn(30, 3, 6, 6), torch.arange(30) % 3
    optim = wrapper(net, optimizer=dict(type=name, **QUICK[name]), clip_grad=dict(max_norm=1.0))
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(x), y)
        losses.append(loss.item())
        optim.update_params(loss)
    assert losses[-1] < 0.3 * losses[0]


@NAMES
def test_paramwise_settings_reach_the_groups(name):
    pytest.importorskip('pytorch_optimizer')
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optim = wrapper(
        net,
        optimizer=dict(type=name, lr=0.1, weight_decay=0.01),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, bias_lr_mult=2.0),
    )
    decays = [group['weight_decay'] for group in optim.optimizer.param_groups]
    assert decays == [0.01, 0.0, 0.0, 0.0]
    assert optim.optimizer.param_groups[1]['lr'] == 0.2


@NAMES
def test_a_run_resumes_bit_for_bit(tmp_path, name):
    pytest.importorskip('pytorch_optimizer')
    kwargs = dict(
        hooks=[dict(type='StepSeedHook')],
        optim_wrapper=dict(optimizer=dict(type=name, **QUICK[name])),
    )
    whole = trained(tmp_path / 'whole', until=4, **kwargs)
    trained(tmp_path / 'parts', until=2, **kwargs)
    resumed = trained(tmp_path / 'parts', until=4, resume=True, **kwargs)
    assert same(weights(whole), weights(resumed))


@NAMES
def test_an_unknown_argument_is_refused(tmp_path, name):
    pytest.importorskip('pytorch_optimizer')
    with pytest.raises(ValueError, match="unknown key 'weigth_decay'.*'weight_decay'"):
        OPTIMIZERS.build(dict(type=name, params=[nn.Parameter(torch.zeros(2))], weigth_decay=0.1))
