"""The matrix of kinds that teach each other: what it finds today is what its file says."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from benchmarks import detection_matrix as matrix
from benchmarks import matrix_table
from benchmarks.coverage_models import configs_root

RESULTS = json.loads(matrix.RESULTS.read_text())
ROWS = RESULTS['rows']
SAMPLE = [  # pairs that learn from a teacher that has learnt nothing, and such as are refused
    ('RetinaNet', 'DETR'),
    ('SSD', 'Faster R-CNN'),
    ('DETR', 'YOLOv3'),
    ('Mask2Former', 'Faster R-CNN'),
    ('SOLO', 'SSD'),
    ('CornerNet', 'YOLOv3'),
]


def outcomes(found: dict) -> dict[str, str]:
    return {term: found[term]['outcome'] for term in matrix.TERMS}


def packaged(*kinds: str) -> None:
    for kind in kinds:
        if not (configs_root() / matrix.KINDS[kind]).is_file():
            pytest.skip(f'this mmdet does not ship {matrix.KINDS[kind]}')


@pytest.fixture
def untaught(monkeypatch):
    """Teachers as they begin, in a cache of their own."""
    monkeypatch.setattr(matrix, 'LEARNING', 0)
    matrix.quiet()
    matrix.teacher.cache_clear()
    yield
    matrix.teacher.cache_clear()


@pytest.mark.parametrize(('student', 'teacher'), SAMPLE)
def test_a_sample_is_as_the_file_says(student, teacher, untaught):
    packaged(student, teacher)
    found = matrix.row(student, [teacher])[teacher]
    assert outcomes(found) == outcomes(ROWS[student][teacher]), found


@pytest.mark.slow
@pytest.mark.parametrize('student', ROWS)
def test_every_pair_is_as_the_file_says(student):
    packaged(*ROWS[student])
    matrix.quiet()
    found = matrix.row(student, list(ROWS[student]))
    assert {t: outcomes(x) for t, x in found.items()} == {
        t: outcomes(x) for t, x in ROWS[student].items()
    }


def test_the_file_has_every_pair_and_nothing_crashes():
    assert RESULTS['kinds'] == matrix.KINDS
    assert list(ROWS) == list(matrix.KINDS)
    assert all(list(row) == list(matrix.KINDS) for row in ROWS.values())
    for term in matrix.TERMS:
        assert not matrix_table.outcomes(ROWS, term, 'crashed')


def test_only_corners_are_taught_no_classes():
    refused = Counter(s for s, _ in matrix_table.outcomes(ROWS, 'classes', 'refused'))
    assert refused == {'CornerNet': len(matrix.KINDS)}
    pairs = len(ROWS) * (len(ROWS) - 1)
    assert len(matrix_table.outcomes(ROWS, 'classes', 'ok')) >= 0.95 * pairs


def test_the_matrix_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    done, out = [], tmp_path / 'out.json'

    def row(own, teachers):
        done.append((own, list(teachers)))
        return {t: {term: dict(outcome='ok') for term in matrix.TERMS} for t in teachers}

    monkeypatch.setattr(matrix, 'row', row)
    some = ['--students', 'SSD', '--out', str(out)]
    assert matrix.main([*some, '--teachers', 'GFL']) == 0
    assert matrix.main([*some, '--teachers', 'GFL', 'FCOS']) == 0
    assert matrix.main([*some, '--teachers', 'GFL', 'FCOS']) == 0
    assert done == [('SSD', ['GFL']), ('SSD', ['FCOS'])]
    assert list(json.loads(out.read_text())['rows']['SSD']) == ['FCOS', 'GFL']
    assert matrix.main(['--list']) == 0 and 'CornerNet: cornernet/' in capsys.readouterr().out


def test_the_table_names_those_that_do_not_teach():
    ok, silent = dict(outcome='ok'), dict(outcome='silent')
    no = dict(outcome='refused', why="TapError: terms[0] ('by').student: It has none. Take X.")
    rows = {
        'A': {'A': dict(classes=ok, boxes=ok), 'B': dict(classes=silent, boxes=ok)},
        'B': {'A': dict(classes=ok, boxes=no), 'B': dict(classes=ok, boxes=no)},
    }
    made = matrix_table.text(dict(versions=dict(mmdet='3'), rows=rows))
    assert 'Pairs that learn (mmdet 3): classes: 3 of 4, boxes: 2 of 4.' in made
    assert '| A | 1 of 2; B found no box that meets a region | all 2 |' in made
    assert '| B | all 2 | none: refused |' in made and '- B: boxes refused: It has none.' in made
