"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

# Helpers, not tests: --doctest-modules would import them a second time, under another name.
collect_ignore = ['helpers']

DIGITS = dict(image_size=128, train=24, val=12, seed=0)


@pytest.fixture(scope='session')
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small digits set: 24 train and 12 val images of 128x128, made once a session.

    A ``DigitsCocoDataset`` over it needs ``data_root=str(digits_root)`` and ``digits=DIGITS``.
    """
    from mmkd_plugin.datasets import ensure_digits

    return ensure_digits(tmp_path_factory.mktemp('data') / 'digits', DIGITS, progress=False)


@pytest.fixture(autouse=True)
def no_environment_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runner lists compilers and GPUs at every start, which takes longer than a tiny training."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


@pytest.fixture(autouse=True, scope='module')
def no_default_scope():
    """A Runner of another test file leaves its default scope behind, in which nothing is found."""
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_silence():
    """Benchmarks silence their own process for good; later tests read what is logged."""
    yield
    logging.disable(logging.NOTSET)
