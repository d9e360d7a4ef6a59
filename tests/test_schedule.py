"""Schedules: when a term acts and with what share of its weight."""

from __future__ import annotations

import pytest

from mmkd_plugin.terms.schedule import Schedule


def factors(schedule: Schedule, steps, per_epoch: int = 10) -> list[float]:
    return [schedule.factor(i, i // per_epoch) for i in steps]


def test_the_default_always_acts_fully():
    assert factors(Schedule(), [0, 1, 10**6]) == [1.0, 1.0, 1.0]
    assert Schedule().is_constant and Schedule(by_epoch=True).is_constant


@pytest.mark.parametrize('kwargs', [dict(begin=1), dict(end=5), dict(warmup=2), dict(interval=2)])
def test_whatever_changes_with_time_is_not_constant(kwargs):
    assert not Schedule(**kwargs).is_constant
    assert not Schedule(**kwargs, by_epoch=True).is_constant


def test_the_window_holds_begin_but_not_end():
    assert factors(Schedule(begin=2, end=4), range(6)) == [0, 0, 1, 1, 0, 0]
    assert factors(Schedule(begin=2), range(4)) == [0, 0, 1, 1]


def test_warmup_by_epochs_is_that_of_dkd():
    """DKD: min((epoch + 1) / 20, 1) with epochs counted from 0, constant within an epoch."""
    schedule = Schedule(warmup=20, by_epoch=True)
    for epoch in range(240):
        expected = min((epoch + 1) / 20, 1)
        assert [schedule.factor(epoch * 7 + i, epoch) for i in range(7)] == [expected] * 7


def test_warmup_by_iterations_starts_at_begin():
    assert factors(Schedule(begin=3, warmup=4, end=9), range(10)) == [
        0,
        0,
        0,
        0.25,
        0.5,
        0.75,
        1,
        1,
        1,
        0,
    ]


def test_the_window_by_epochs():
    schedule = Schedule(begin=1, end=3, by_epoch=True)
    assert factors(schedule, range(0, 50, 5), per_epoch=10) == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]


def test_interval_counts_iterations():
    assert factors(Schedule(interval=3), range(7)) == [1, 0, 0, 1, 0, 0, 1]
    assert factors(Schedule(begin=2, interval=3), range(7)) == [0, 0, 1, 0, 0, 1, 0]
    # also where the window counts epochs: a few steps of every epoch, not every third epoch
    assert factors(Schedule(interval=3, by_epoch=True), range(7), per_epoch=2) == [
        1,
        0,
        0,
        1,
        0,
        0,
        1,
    ]


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(begin=-1), ['begin=-1', '0 or more']),
        (dict(warmup=-5), ['warmup=-5', '0 or more']),
        (dict(begin=1.5), ['begin=1.5', 'whole number']),
        (dict(warmup='2'), ["warmup='2'", 'whole number']),
        (dict(begin=7, end=3), ['end=3', 'begin=7', 'None']),
        (dict(begin=7, end=7), ['end=7', 'begin=7']),
        (dict(end=0), ['end=0', 'begin=0']),
        (dict(end=2.5), ['end=2.5']),
        (dict(interval=0), ['interval=0', '1 or more']),
        (dict(interval=-2), ['interval=-2']),
    ],
)
def test_contradictions_are_explained(kwargs, words):
    with pytest.raises(ValueError) as error:
        Schedule(**kwargs)
    assert all(word in str(error.value) for word in words)
