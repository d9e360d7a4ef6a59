"""What the log says of terms that have ended, wait for their turn, or have not begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.registry import DATASETS
from ranks import run_ranks
from toys import TEACHER, TERM, ToyImages, hook_config, runner_config, train

CLASSIFIER = dict(teacher=dict(config=dict(type='ToyClassifier', width=8), allow_random=True))
IPWD = dict(loss=dict(type='IPWDLoss'), student='cls_logits')
IPWD_KEYS = ['loss_ipwd', 'loss_ipwd_cls', 'ipwd_weight_mean', 'ipwd_weight_max']


@DATASETS.register_module()
class ToyLabelledImages(ToyImages):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        item['data_samples'].gt_label = item['data_samples'].label
        return item


def by_epoch(work_dir, hook, every: int, epochs: int = 3, **overrides):
    """Epochs of four iterations; a line in the log after ``every`` of them."""
    config = runner_config(
        work_dir,
        hook,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1),
            logger=dict(type='LoggerHook', interval=every),
        ),
        log_processor=dict(by_epoch=True),
        **overrides,
    )
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    config.train_dataloader.dataset.type = 'ToyLabelledImages'
    return config


def lines(work_dir) -> list[dict]:
    """The lines of all runs in a folder, as TensorBoard and the like get them, too."""
    files = sorted(Path(work_dir).rglob('scalars.json'))
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in found if 'loss' in line]


@pytest.mark.parametrize('every', [1, 3, 4])
def test_a_term_that_has_ended_leaves_the_log(tmp_path, every):
    term = dict(IPWD, end=1, by_epoch=True)
    hook = hook_config(term, **CLASSIFIER)
    train(by_epoch(tmp_path, hook, every, model=dict(type='ToyClassifier')))
    found = lines(tmp_path)
    assert {line['epoch'] for line in found} == {1, 2, 3}
    for line in found:
        shown = [key for key in IPWD_KEYS if key in line]
        assert shown == (IPWD_KEYS if line['epoch'] == 1 else []), line


def test_so_it_does_after_a_resume(tmp_path):
    config = by_epoch(tmp_path, hook_config(dict(TERM, end=1, by_epoch=True)), 1, epochs=1)
    train(config)
    config.train_cfg.max_epochs, config.resume = 2, True
    train(config)
    assert [('loss_gdd' in line) for line in lines(tmp_path)] == [True] * 4 + [False] * 4


@pytest.mark.parametrize('every, shown', [(1, [True, False] * 4), (2, [True] * 4)])
def test_between_its_turns_a_term_is_in_the_lines_that_tell_of_one(tmp_path, every, shown):
    config = runner_config(tmp_path, hook_config(dict(TERM, interval=2)), max_iters=8)
    config.default_hooks.logger.interval = every
    train(config)
    found = lines(tmp_path)
    assert [('loss_gdd' in line) for line in found] == shown
    assert all(line['loss_gdd'] > 0 for line in found if 'loss_gdd' in line)


def test_terms_that_have_not_begun_or_never_act_are_not_in_it(tmp_path):
    late = dict(TERM, begin=2, name='late')
    train(runner_config(tmp_path, hook_config(late, dict(TERM, weight=0.0)), max_iters=4))
    found = lines(tmp_path)
    assert [('loss_late' in line) for line in found] == [False, False, True, True]
    assert not any('loss_gdd' in line for line in found)


SCRIPT = """
import toys
import torch.distributed as dist
from mmengine.runner import Runner
dist.init_process_group('gloo')
terms = [dict(toys.TERM, end=3), dict(toys.TERM, name='every_other', interval=2)]
config = toys.runner_config('{out}', toys.hook_config(*terms), max_iters=6,
    launcher='pytorch', model_wrapper_cfg=dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
Runner.from_cfg(config).train()
"""


def test_several_ranks_log_alike(tmp_path):
    run_ranks(SCRIPT.format(out=tmp_path))
    found = lines(tmp_path)
    assert [('loss_gdd' in line) for line in found] == [True] * 3 + [False] * 3
    assert [('loss_every_other' in line) for line in found] == [True, False] * 3


def test_a_stale_value_is_not_taken_for_news(tmp_path):
    """A term that has ended leaves no number behind that the watch for NaN would read again."""
    config = runner_config(
        tmp_path, hook_config(dict(TERM, end=2), teacher=dict(config=TEACHER, allow_random=True))
    )
    runner = train(config)
    assert runner.iter == 4
    assert not [key for key in runner.message_hub.log_scalars if 'gdd' in key]
