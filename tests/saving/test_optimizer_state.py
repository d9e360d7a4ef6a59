"""The connectors' optimizer state stands apart, so plain and distilled runs resume one another."""

from __future__ import annotations

import copy

import pytest
import torch
from toys import TERM, hook_config, runner_config, train

PARAMWISE = dict(
    optimizer=dict(type='AdamW', lr=0.01),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
ONE_GROUP = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
SCHEDULE = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=3, end=8),
]
CONNECTORLESS = dict(loss=dict(type='PKDLoss'), student='neck', name='pkd')


def config(folder, *hooks, optimizer, until=4, **kwargs):
    return runner_config(
        folder,
        *hooks,
        max_iters=until,
        optim_wrapper=copy.deepcopy(optimizer),
        param_scheduler=copy.deepcopy(SCHEDULE),
        **kwargs,
    )


def load(path):
    return torch.load(path, weights_only=False)


def equal(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize('optimizer', [PARAMWISE, ONE_GROUP])
def test_a_file_has_the_form_of_a_plain_runs(tmp_path, optimizer):
    train(config(tmp_path / 'plain', optimizer=optimizer))
    idle = hook_config(dict(TERM, begin=99))  # never acts: the student trains as in a plain run
    train(config(tmp_path / 'distilled', idle, optimizer=optimizer))
    plain, distilled = (load(tmp_path / d / 'iter_4.pth') for d in ('plain', 'distilled'))
    assert equal(plain['optimizer'], distilled['optimizer'])
    schedulers = plain['param_schedulers'], distilled['param_schedulers']
    assert equal(*schedulers)
    assert distilled['distiller']['optimizer']


@pytest.mark.parametrize('optimizer', [PARAMWISE, ONE_GROUP])
def test_a_distilled_run_resumes_as_a_plain_one(tmp_path, optimizer):
    idle = hook_config(dict(TERM, begin=99))
    train(config(tmp_path / 'plain', optimizer=optimizer, until=8))
    train(config(tmp_path / 'run', idle, optimizer=optimizer))
    train(config(tmp_path / 'run', optimizer=optimizer, until=8, resume=True))
    through, resumed = (load(tmp_path / d / 'iter_8.pth') for d in ('plain', 'run'))
    assert equal(through['state_dict'], resumed['state_dict'])
    assert equal(through['optimizer'], resumed['optimizer'])


@pytest.mark.parametrize('optimizer', [PARAMWISE, ONE_GROUP])
def test_a_plain_run_resumes_as_a_distilled_one(tmp_path, optimizer, capsys):
    train(config(tmp_path / 'run', optimizer=optimizer))
    runner = train(
        config(tmp_path / 'run', hook_config(), optimizer=optimizer, until=8, resume=True)
    )
    assert 'saved without distillation. The connectors start anew' in capsys.readouterr().out
    saved = load(tmp_path / 'run' / 'iter_8.pth')
    assert all(torch.isfinite(v).all() for v in saved['distiller']['connectors'].values())
    # Each group, the connectors' too, is where the schedule says.
    factors = {
        round(g['lr'] / g['initial_lr'], 9) for g in runner.optim_wrapper.optimizer.param_groups
    }
    assert len(factors) == 1


@pytest.mark.parametrize('optimizer', [PARAMWISE, ONE_GROUP])
def test_connectors_resume_exactly(tmp_path, optimizer):
    hook = hook_config()
    train(config(tmp_path / 'through', hook, optimizer=optimizer, until=8))
    train(config(tmp_path / 'killed', hook, optimizer=optimizer, until=4))
    train(config(tmp_path / 'killed', hook, optimizer=optimizer, until=8, resume=True))
    a, b = (load(tmp_path / d / 'iter_8.pth') for d in ('through', 'killed'))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert equal(a[key], b[key]), key
    for key in ('connectors', 'optimizer'):
        assert equal(a['distiller'][key], b['distiller'][key]), key


def test_files_with_the_connectors_among_the_students_parameters_resume(tmp_path, monkeypatch):
    """As versions before this one wrote them."""
    from mmkd_plugin.hooks import resume

    def as_before(checkpoint, distiller, runner):
        checkpoint['distiller'] = distiller.resume_state()

    hook = hook_config()
    train(config(tmp_path / 'through', hook, optimizer=PARAMWISE, until=8))
    with monkeypatch.context() as patch:
        patch.setattr('mmkd_plugin.hooks.distill_hook.add_distillation', as_before)
        train(config(tmp_path / 'old', hook, optimizer=PARAMWISE, until=4))
    assert 'optimizer' not in load(tmp_path / 'old' / 'iter_4.pth')['distiller']
    train(config(tmp_path / 'old', hook, optimizer=PARAMWISE, until=8, resume=True))
    a, b = (load(tmp_path / d / 'iter_8.pth') for d in ('through', 'old'))
    assert equal(a['state_dict'], b['state_dict']) and resume
    assert equal(a['distiller']['connectors'], b['distiller']['connectors'])


@pytest.mark.parametrize('terms', [(TERM, CONNECTORLESS), (CONNECTORLESS, TERM)])
def test_terms_with_and_without_connectors_are_told_apart(tmp_path, terms):
    then, now = (hook_config(dict(term)) for term in terms)
    train(config(tmp_path, then, optimizer=ONE_GROUP))
    with pytest.raises(ValueError, match='terms are not those of this run'):
        train(config(tmp_path, now, optimizer=ONE_GROUP, until=8, resume=True))


def test_another_students_optimizer_is_refused_in_one_sentence(tmp_path):
    train(config(tmp_path, hook_config(), optimizer=ONE_GROUP))
    with pytest.raises(ValueError, match='in 1 group of the student, this run'):
        train(config(tmp_path, hook_config(), optimizer=PARAMWISE, until=8, resume=True))


def test_another_seed_is_told(tmp_path, capsys):
    train(config(tmp_path, hook_config(seed=1), optimizer=ONE_GROUP))
    train(config(tmp_path, hook_config(seed=2), optimizer=ONE_GROUP, until=8, resume=True))
    assert 'seed: 1 then, 2 now' in capsys.readouterr().out
