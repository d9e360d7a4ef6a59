"""Connectors larger than the student: told before training, with what makes them smaller."""

from __future__ import annotations

import pytest
from toys import TERM, hook_config, runner_config, toy_batch, toy_model, train

import mmkd_plugin

WIDE = 240  # 1.04 million parameters in a generator, in two levels 2.08 million


def attached(neck=WIDE, **loss):
    student = toy_model(0).train()
    term = dict(TERM, loss=dict(type='GDDLoss', **loss))
    teacher = toy_model(1, neck=neck)
    return mmkd_plugin.attach(student, teacher=teacher, terms=[term], probe_size=(16, 16))


@pytest.fixture
def told(monkeypatch):
    said = []
    module = 'mmkd_plugin.terms.connector_size.print_log'
    monkeypatch.setattr(module, lambda message, *args: said.append(message))
    return said


def test_both_numbers_and_what_to_type(told):
    distiller = attached()
    own = sum(p.numel() for p in toy_model(0).parameters())
    count = sum(row.connector_parameters for row in distiller.plan())
    assert count == 2 * (18 * WIDE**2 + 2 * WIDE + 7 * WIDE)  # two levels, aligned from 6 channels
    (message,) = told
    for words in (
        "terms[0] ('gdd')",
        f'{count:,} parameters',
        f'student has {own:,}',
        "loss=dict(type='GDDLoss', width=30)",
        '--term-options gdd.loss.width=30',
    ):
        assert words in message


def test_what_it_proposes_ends_the_warning(told):
    distiller = attached(width=30)
    count = sum(row.connector_parameters for row in distiller.plan())
    assert not told and count == 2 * (18 * WIDE * 30 + 30 + WIDE + 7 * WIDE)


def test_small_connectors_of_a_tiny_student_are_not_worth_a_word(told):
    attached(neck=32)
    assert not told


def test_a_generator_that_is_narrow_already_gets_other_advice(told):
    attached(width=200)
    (message,) = told
    assert 'Tap narrower maps' in message and 'width=' not in message


def test_the_run_says_so_once(tmp_path, capsys):
    teacher = dict(config=dict(type='ToyDetector', neck=WIDE), allow_random=True)
    train(runner_config(tmp_path, hook_config(teacher=teacher), max_iters=1))
    assert capsys.readouterr().out.count('--term-options gdd.loss.width=30') == 1


def test_another_width_on_resume_is_refused():
    state = attached(neck=6, width=3).resume_state()
    attached(neck=6, width=3).load_resume_state(state)
    with pytest.raises(ValueError, match='terms are not those of this run'):
        attached(neck=6, width=4).load_resume_state(state)


def test_a_narrow_generator_trains():
    student = toy_model(0).train()
    term = dict(TERM, loss=dict(type='MGDLoss', width=3))
    mmkd_plugin.attach(student, teacher=toy_model(1), terms=[term], probe_size=(16, 16))
    losses = student(*toy_batch(), mode='loss')
    losses['loss_gdd'].backward()
    assert all(p.grad.abs().sum() > 0 for p in student.distiller.parameters())
    assert student.neck.convs[0].weight.grad.abs().sum() > 0
