"""What training refuses, and what it is called."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mmkd_plugin
from mmkd_plugin.diagnosis.findings import CODES
from mmkd_plugin.diagnosis.refusals import REFUSED_BY, code_of
from mmkd_plugin.errors import CheckpointError
from mmkd_plugin.images.pixels import stated

ROOT = Path(mmkd_plugin.__file__).parent


def test_every_function_that_refuses_is_there():
    names = {
        node.name
        for path in ROOT.rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert set(REFUSED_BY) <= names
    assert set(REFUSED_BY.values()) <= set(CODES)


def test_every_code_is_on_its_page():
    page = (ROOT.parent / 'docs' / 'why-not.md').read_text()
    assert all(f'`{code}`' in page for code in CODES)


def raised(function, *arguments) -> Exception:
    with pytest.raises(Exception) as info:
        function(*arguments)
    return info.value


def test_codes_of_refusals():
    assert code_of(raised(stated, dict(range=7), 'teacher.inputs')) == 'normalization'
    assert code_of(CheckpointError('damaged')) == 'bad-checkpoint'
    assert code_of(raised(int, 'x')) == 'refused'
