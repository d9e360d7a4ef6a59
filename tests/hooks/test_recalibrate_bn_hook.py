"""RecalibrateBNHook: statistics of plain images, training untouched."""

from __future__ import annotations

import pytest
import torch
from classification_toys import AUGMENT, parameters, preprocessor, run_config, same, trained
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd_plugin.hooks import RecalibrateBNHook

HOOK = dict(type='RecalibrateBNHook', num_batches=2)
PLAIN = dict(batch_augments=None, mixup=1.0)


@pytest.mark.parametrize('by_epoch,until', [(True, 3), (False, 6)])
@pytest.mark.parametrize('seeded', [False, True])
def test_training_is_bit_identical_with_and_without(tmp_path, by_epoch, until, seeded):
    others = [dict(type='StepSeedHook')] if seeded else []
    kwargs = dict(by_epoch=by_epoch, until=until, val=True)
    plain = trained(tmp_path / 'plain', hooks=others, **kwargs)
    hooked = trained(tmp_path / 'hooked', hooks=[HOOK, *others], **kwargs)
    assert same(parameters(plain), parameters(hooked))
    assert not torch.equal(plain.model.norm.running_var, hooked.model.norm.running_var)


def test_statistics_are_those_of_plain_training_images(tmp_path):
    """All images, in one batch, without augmentation: the exact mean and variance."""
    model = dict(type='NoisyClassifier', data_preprocessor=preprocessor(**PLAIN))
    config = run_config(tmp_path, hooks=[HOOK], until=1, model=model)
    config.train_dataloader.batch_size = 20
    runner = Runner.from_cfg(config)
    runner.train()
    images = runner.train_dataloader.dataset.images
    with torch.no_grad():
        maps = runner.model.conv((images.float() - 120) / 60)
    # the order of the selection changes the last bits
    assert torch.allclose(runner.model.norm.running_mean, maps.mean((0, 2, 3)), atol=1e-5)
    flat = maps.transpose(0, 1).flatten(1)
    assert torch.allclose(runner.model.norm.running_var, flat.var(1), rtol=1e-4)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert torch.equal(saved['norm.running_mean'], runner.model.norm.running_mean)


class Count(Hook):
    def before_train(self, runner):
        self.calls = []
        hook = next(h for h in runner.hooks if isinstance(h, RecalibrateBNHook))
        original = hook.recalibrate
        # after_train_iter comes before the count moves on, after_train_epoch after it
        extra = 0 if runner.train_loop.max_epochs > 1 else 1

        def recalibrate(runner):
            self.calls.append(runner.iter + extra)
            original(runner)

        hook.recalibrate = recalibrate


@pytest.mark.parametrize(
    'kwargs,expected',
    [
        (dict(until=4, every=2), [6, 12]),  # 3 iterations an epoch
        (dict(until=3, every=2), [6, 9]),
        (dict(until=3, every=-1), [9]),
        (dict(until=2, every=-1, val=True), [3, 6]),
        (dict(until=5, every=3, by_epoch=False), [3, 5]),
        (dict(until=5, every=-1, by_epoch=False, val=True), [2, 4, 5]),
    ],
)
def test_it_runs_before_validation_checkpoints_and_the_end(tmp_path, kwargs, expected):
    runner = Runner.from_cfg(run_config(tmp_path, hooks=[HOOK], **kwargs))
    count = Count()
    runner.register_hook(count)
    runner.train()
    assert count.calls == expected


def test_models_without_batchnorm_are_left_alone(tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError('no loader is needed')

    monkeypatch.setattr('mmkd_plugin.hooks.recalibrate_bn_hook._loader', never)
    model = dict(type='NoisyClassifier', norm='group',
                 data_preprocessor=preprocessor(batch_augments=AUGMENT, mixup=1.0))  # fmt: skip
    trained(tmp_path, hooks=[HOOK], until=1, model=model)


def test_frozen_layers_and_flags_are_left_alone(tmp_path):
    runner = Runner.from_cfg(run_config(tmp_path, hooks=[HOOK], until=1))
    runner.train()
    norm = runner.model.norm
    norm.eval()
    before = norm.running_mean.clone()
    RecalibrateBNHook(2).recalibrate(runner)
    assert torch.equal(norm.running_mean, before)
    norm.train()
    tracked, momentum = norm.num_batches_tracked.clone(), norm.momentum
    RecalibrateBNHook(1).recalibrate(runner)
    assert torch.equal(norm.num_batches_tracked, tracked) and norm.momentum == momentum
    assert runner.model.data_preprocessor.mixup == 1.0
    assert runner.model.dropout.training and not torch.equal(norm.running_mean, before)


def test_a_failure_puts_the_model_back(tmp_path, monkeypatch):
    runner = Runner.from_cfg(run_config(tmp_path, hooks=[HOOK], until=1))
    runner.train()
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    calls, forward = [], runner.model.fc.forward

    def fail_at_the_second(x):
        calls.append(x)
        if len(calls) == 2:
            raise RuntimeError('out of memory')
        return forward(x)

    monkeypatch.setattr(runner.model.fc, 'forward', fail_at_the_second)
    with pytest.raises(RuntimeError, match='out of memory'):
        RecalibrateBNHook(2).recalibrate(runner)
    assert same(before, runner.model.state_dict()) and runner.model.norm.training


def test_bad_number():
    with pytest.raises(ValueError, match='num_batches must be a whole number'):
        RecalibrateBNHook(0)
