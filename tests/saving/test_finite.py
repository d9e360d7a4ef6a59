"""Nothing that is not finite is saved over something finite, whoever made it so."""

from __future__ import annotations

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS, METRICS
from toys import TERM, hook_config, runner_config, train

from mmkd_plugin.saving.finite import not_finite

NAN = float('nan')


@HOOKS.register_module()
class UsersCheckpointHook(CheckpointHook):
    """A subclass of the user's own."""


@METRICS.register_module()
class Rising(BaseMetric):
    """Better with every validation."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        Rising.count += 1
        return dict(acc=float(Rising.count))


class Poison(Hook):
    """Makes something NaN in the sixth iteration, which saves, and before anything is saved."""

    def __init__(self, what: str) -> None:
        self.what = what

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 5 and self.what in ('gradient', 'connector'):
            model = runner.model
            module = model.backbone.stem[0] if self.what == 'gradient' else model.distiller
            parameter = next(module.parameters())
            parameter.register_hook(lambda grad: grad * NAN)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter != 5:
            return
        if self.what == 'buffer':
            runner.model.backbone.stem[1].running_var[1] = float('inf')
        elif self.what == 'optimizer':
            weight = runner.model.bbox_head.cls.weight
            runner.optim_wrapper.optimizer.state[weight]['momentum_buffer'][0] = NAN
        elif self.what == 'average':
            ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
            ema.ema_model.module.neck.convs[0].bias.data[0] = NAN


def config(folder, checkpoint: dict | None = None, *hooks, **kwargs):
    hook = dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1)
    return runner_config(
        folder,
        *(hooks or [hook_config()]),
        max_iters=10,
        default_hooks=dict(checkpoint=dict(hook, **(checkpoint or {}))),
        **kwargs,
    )


def load(path):
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ('what', 'told'),
    [
        ('gradient', 'weights of backbone.stem.0.weight'),
        ('connector', 'distillation state'),
        ('buffer', 'weights of backbone.stem.1.running_var'),
        ('optimizer', "optimizer's momentum_buffer of bbox_head.cls.weight"),
        ('average', 'neck.convs.0.bias'),
    ],
)
def test_the_good_file_stays(tmp_path, what, told):
    hooks = [hook_config(), dict(type='EMAHook')]
    with pytest.raises(FloatingPointError) as error:
        train(config(tmp_path, None, *hooks), Poison(what))
    assert told in str(error.value) and 'at iteration 5' in str(error.value)
    assert f'{tmp_path}/iter_4.pth was looked at' in str(error.value)
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['iter_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_4.pth')
    assert not_finite(load(tmp_path / 'iter_4.pth')) == []


@pytest.mark.parametrize(
    'kind', ['CheckpointHook', 'mmkd_plugin.SafeCheckpointHook', 'UsersCheckpointHook']
)
@pytest.mark.parametrize('terms', [[dict(TERM, end=2)], [dict(TERM, begin=99)]])
def test_idle_terms_and_any_checkpoint_hook(tmp_path, kind, terms):
    with pytest.raises(FloatingPointError, match='not saved'):
        train(config(tmp_path, dict(type=kind), hook_config(*terms)), Poison('gradient'))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_4.pth']


def test_a_plain_run_with_the_safe_hook(tmp_path):
    hook = dict(type='mmkd_plugin.SafeCheckpointHook')
    with pytest.raises(FloatingPointError, match='not saved'):
        train(config(tmp_path, hook, dict(type='EMAHook')), Poison('gradient'))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_4.pth']


def test_the_best_file_stays_too(tmp_path):
    loader = config(tmp_path).train_dataloader
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    validation = dict(
        train_cfg=dict(by_epoch=False, max_iters=10, val_interval=2),
        val_dataloader=loader,
        val_evaluator=dict(type='Rising'),
        val_cfg=dict(),
    )
    keep = dict(interval=100, save_best='acc', rule='greater', save_last=False)
    hook = hook_config(dict(TERM, end=2))
    config_ = config(tmp_path, keep, hook)
    config_.update(validation)
    with pytest.raises(FloatingPointError, match='not saved'):
        train(config_, Poison('gradient'))
    (best,) = tmp_path.glob('best_*.pth')
    assert 'iter_4' in best.name and not_finite(load(best)) == []


def test_before_the_first_save_nothing_is_called_intact(tmp_path):
    class Early(Hook):
        priority = 'VERY_HIGH'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            next(runner.model.neck.parameters()).data.fill_(NAN)

    with pytest.raises(FloatingPointError) as error:
        train(config(tmp_path), Early())
    assert 'has saved no checkpoint' in str(error.value)
    assert 'intact' not in str(error.value) and 'finite' not in str(error.value).split('.')[-2]


def test_masks_of_minus_infinity_may_stay(tmp_path):
    class Masked(Hook):
        priority = 'VERY_HIGH'

        def before_run(self, runner):
            runner.model.backbone.register_buffer('mask', torch.full((3,), -float('inf')))

    hooks = [hook_config(), dict(type='EMAHook', update_buffers=False)]
    train(config(tmp_path, None, *hooks), Masked())
    saved = load(tmp_path / 'iter_10.pth')
    assert saved['meta']['not_finite'] == ['backbone.mask']
    assert not torch.isfinite(saved['state_dict']['backbone.mask']).any()


def test_a_step_that_does_not_save_is_not_looked_at(tmp_path, monkeypatch):
    from mmkd_plugin.hooks import safe_checkpoint_hook

    looks = []

    def counted(*args, **kwargs):
        looks.append(args)
        return not_finite(*args, **kwargs)

    monkeypatch.setattr(safe_checkpoint_hook, 'not_finite', counted)
    train(config(tmp_path, dict(interval=5)))
    assert len(looks) == 3  # once at the start, and two saves
