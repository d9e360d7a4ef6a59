"""What the tests of the command lines share."""

from __future__ import annotations

import pytest

from mmkd_plugin.cli import train


@pytest.fixture(scope='module')
def tool():
    """The module of `mmkd train`; each call of its main is a training."""
    return train
