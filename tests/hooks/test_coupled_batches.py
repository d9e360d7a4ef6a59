"""A loss that looks at the whole batch is told of where the optimizer's step is made of parts."""

from __future__ import annotations

import logging

import pytest
from toys import TERM, hook_config, runner_config, train

CKD = dict(loss=dict(type='CKDLoss'), student='cls_logits')
CLASSIFIER = dict(teacher=dict(config=dict(type='ToyClassifier', width=8), allow_random=True))
PKD = dict(TERM, loss=dict(type='PKDLoss'), name='pkd')


@pytest.fixture
def warnings(monkeypatch):
    """What is logged as a warning by the module that looks for such batches."""
    found = []

    def keep(message, logger=None, level=logging.INFO):
        found.append(message) if level == logging.WARNING else None

    monkeypatch.setattr('mmkd_plugin.hooks.coupled_batches.print_log', keep)
    return found


def run(tmp_path, term, counts: int = 1, size: int = 2, model: str = 'ToyDetector'):
    hook = hook_config(term, **(CLASSIFIER if model == 'ToyClassifier' else {}))
    optimizer = dict(type='SGD', lr=0.01)
    config = runner_config(
        tmp_path,
        hook,
        model=dict(type=model),
        batch_size=size,
        length=16,
        optim_wrapper=dict(optimizer=optimizer, accumulative_counts=counts),
    )
    train(config)


def test_accumulated_gradients_are_not_those_of_one_batch(tmp_path, warnings):
    run(tmp_path, PKD, counts=2)
    (text,) = warnings
    assert 'accumulative_counts=2' in text and "'pkd' (PKDLoss)" in text


def test_few_images_are_few_to_compare(tmp_path, warnings):
    run(tmp_path, CKD, size=4, model='ToyClassifier')
    (text,) = warnings
    assert 'batch_size=4' in text and "'ckd' (CKDLoss)" in text


@pytest.mark.parametrize(
    'term, settings',
    [
        (TERM, dict(counts=2)),  # no sample of its loss depends on the others
        (PKD, {}),  # a map has many positions
        (CKD, dict(size=8, model='ToyClassifier')),
    ],
)
def test_nothing_is_said_where_nothing_is_lost(tmp_path, warnings, term, settings):
    run(tmp_path, term, **settings)
    assert not warnings
