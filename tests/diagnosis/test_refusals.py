"""What training refuses, and what it is called."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import torch

import mmkd_plugin
from mmkd_plugin.class_map import resolve_class_map
from mmkd_plugin.diagnosis.findings import CODES, Report
from mmkd_plugin.diagnosis.refusals import REFUSED_BY, code_of, evidence_of, note_refusal
from mmkd_plugin.errors import CheckpointError, TapError, put_place
from mmkd_plugin.images.pixels import stated
from mmkd_plugin.taps import Capture
from mmkd_plugin.taps.paths import match_paths
from mmkd_plugin.terms.pairing.maps import check_levels, check_maps

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


def test_evidence_is_what_the_refusal_knows():
    sizes = raised(check_maps, capture(8), capture(4), None, 1)
    assert evidence_of(sizes) == dict(student_size=[8, 8], teacher_size=[4, 4])
    levels = raised(check_levels, [capture(8), capture(4)], [capture(8)])
    assert evidence_of(levels)['teacher_sizes'] == [[8, 8]]
    model = torch.nn.ModuleDict(dict(conv=torch.nn.Conv2d(1, 1, 1)))
    path = raised(match_paths, model, 'conf', 'terms[0]')
    assert evidence_of(path) == dict(pattern='conf', nearest=['conv'])
    name = raised(resolve_class_map, dict(a='dig'), ('a', 'b'), ('dog', 'cat'))
    assert evidence_of(name) == dict(unknown='dig', of='teacher', nearest=['dog'])


def test_no_finding_is_without_evidence():
    """A refusal that brings none names its kind, and who refused."""
    report = Report()
    note_refusal(report, raised(int, 'x'), 'terms')
    note_refusal(report, raised(stated, dict(range=7), 'teacher.inputs'), 'teacher')
    first, second = report.findings
    assert first.evidence == dict(error='ValueError', refused_by='test_refusals: raised')
    assert second.evidence == dict(error='ValueError', refused_by='pixels: stated')


def test_evidence_goes_along_with_the_error():
    """Through what puts the place in front of a message, and between processes."""
    error = TapError('sizes differ', student=1)
    put_place(error, 'terms[0]')
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert str(each) == 'terms[0]: sizes differ' and each.evidence == dict(student=1)


def capture(size: int) -> Capture:
    return Capture('neck', torch.zeros(2, 3, size, size))
