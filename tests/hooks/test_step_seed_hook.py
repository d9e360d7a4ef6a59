"""StepSeedHook: a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from classification_toys import same, trained, weights

from mmkd_plugin.hooks import StepSeedHook
from mmkd_plugin.hooks.step_seed_hook import seed_everything

HOOK = dict(type='StepSeedHook')


@pytest.mark.parametrize('val', [False, True])
@pytest.mark.parametrize('by_epoch,until', [(True, 4), (False, 8)])
def test_resume_continues_bit_for_bit(tmp_path, by_epoch, until, val):
    kwargs = dict(hooks=[HOOK], by_epoch=by_epoch, val=val, every=until // 2)
    whole = trained(tmp_path / 'whole', until=until, **kwargs)
    trained(tmp_path / 'parts', until=until // 2, **kwargs)
    resumed = trained(tmp_path / 'parts', until=until, resume=True, **kwargs)
    assert same(weights(whole), weights(resumed))


def test_without_the_hook_the_resumed_run_differs(tmp_path):
    """Shows that the test above can fail."""
    whole = trained(tmp_path / 'whole', until=4)
    trained(tmp_path / 'parts', until=2)
    assert not same(weights(whole), weights(trained(tmp_path / 'parts', until=4, resume=True)))


def test_runs_of_other_seeds_and_other_steps_differ(tmp_path):
    one = trained(tmp_path / 'a', hooks=[HOOK], until=1)
    other = trained(tmp_path / 'b', hooks=[dict(HOOK, seed=7)], until=1)
    assert not same(weights(one), weights(other))
    drawn = set()
    for step in range(5):
        seed_everything(3, step)
        drawn.add(torch.rand(()).item())
    assert len(drawn) == 5


def test_all_generators_are_seeded():
    draws = []
    for _ in range(2):
        seed_everything(11, 5)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]


def test_ranks_draw_different_numbers(monkeypatch):
    draws = []
    for rank in (0, 1):
        monkeypatch.setattr('mmkd_plugin.hooks.step_seed_hook.get_rank', lambda rank=rank: rank)
        seed_everything(11, 5)
        draws.append(torch.rand(()).item())
    assert draws[0] != draws[1]


def test_worker_augmentation_resumes_too(tmp_path):
    """Random transforms in workers, with PyTorch's per-epoch seed."""
    kwargs = dict(hooks=[HOOK], train_dataloader=worker_loader())
    whole = trained(tmp_path / 'whole', until=3, **kwargs)
    trained(tmp_path / 'parts', until=2, **kwargs)
    resumed = trained(tmp_path / 'parts', until=3, resume=True, **kwargs)
    assert same(weights(whole), weights(resumed))


def worker_loader() -> dict:
    return dict(
        batch_size=8,
        num_workers=2,
        persistent_workers=False,
        worker_init_fn=dict(type='epoch_worker_seed'),
        dataset=dict(type='JitteredImages'),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='whole_batch'),
    )


def test_a_bad_seed_is_refused():
    with pytest.raises(ValueError, match='seed must be a whole number'):
        StepSeedHook(seed='3')
