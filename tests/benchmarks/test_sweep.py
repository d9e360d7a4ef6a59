"""The sweep over packaged configs: what it finds today is what its file of results says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import coverage_table, sweep
from benchmarks.coverage_judge import judge
from benchmarks.coverage_models import cases, configs_root, small_model

RESULTS = json.loads(sweep.RESULTS.read_text())
JUDGED = {name: row for name, row in RESULTS['rows'].items() if 'not_judged' not in row}
SAMPLE = (
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'ghm/retinanet_r50_fpn_ghm-1x_coco.py',
)


def outcomes(row: dict) -> dict:
    return {
        teacher: {recipe: found['outcome'] for recipe, found in row[teacher].items()}
        for teacher in coverage_table.TEACHERS
        if teacher in row
    }


def same(name: str, folder: Path) -> None:
    """A row made anew is the one in the file."""
    known = outcomes(JUDGED[name])
    row = judge(name, folder, [(t, r) for t, found in known.items() for r in found])
    assert outcomes(row) == known, row


def packaged(name: str) -> str:
    if not (configs_root() / name).is_file():
        pytest.skip(f'this mmdet does not ship {name}')
    return name


@pytest.mark.parametrize('name', SAMPLE)
def test_a_sample_is_as_the_file_says(name, tmp_path):
    same(packaged(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(JUDGED) - set(SAMPLE)))
def test_every_config_is_as_the_file_says(name, tmp_path):
    same(packaged(name), tmp_path)


@pytest.mark.slow
def test_the_file_knows_every_config():
    if RESULTS['versions'] != sweep.versions():
        pytest.skip('another mmdet ships other configs')
    assert RESULTS['configs'] == cases()
    assert set(RESULTS['rows']) <= set(RESULTS['configs'])


def test_nothing_crashes():
    crashed = [
        (name, recipe, found['why'])
        for name, row in JUDGED.items()
        for teacher in coverage_table.TEACHERS
        for recipe, found in row.get(teacher, {}).items()
        if found['outcome'] == 'crashed'
    ]
    assert not crashed


def test_a_row_that_hangs_or_dies_does_not_end_the_sweep(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, '_row', lambda *_: __import__('time').sleep(30))
    assert sweep.judge_apart('x', 0.5, []) == dict(not_judged='no result after 0.5 s')
    monkeypatch.setattr(sweep, '_row', lambda *_: __import__('os')._exit(3))
    assert sweep.judge_apart('x', 30, []) == dict(not_judged='its process ended with code 3')


def test_the_sweep_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    done, out = [], tmp_path / 'out.json'

    def judged(name, _timeout, tries):
        done.append((name, tries))
        row: dict = dict(pair='A: B')
        for teacher, recipe in tries:
            row.setdefault(teacher, {})[recipe] = dict(outcome='ok')
        return row

    monkeypatch.setattr(sweep, 'judge_apart', judged)
    names, own = list(SAMPLE), ['--teachers', 'own', '--out', str(out)]
    assert sweep.main([names[0], '--recipes', 'kd', *own]) == 0
    assert sweep.main([*names, '--recipes', 'kd', 'gdd', *own]) == 0
    assert done == [
        (names[0], [('own', 'kd')]),
        (names[0], [('own', 'gdd')]),  # what it had of before stays
        (names[1], [('own', 'kd'), ('own', 'gdd')]),
    ]
    rows = json.loads(out.read_text())['rows']
    assert {name: sorted(row['own']) for name, row in rows.items()} == {
        name: ['gdd', 'kd'] for name in names
    }
    out.write_text(json.dumps(dict(versions=dict(torch='0'), configs=[], rows={})))
    with pytest.raises(SystemExit, match='was made with'):
        sweep.main([names[0], '--out', str(out)])


def test_a_small_model_has_the_real_ones_numbers_divided():
    name = packaged('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    model = small_model(name, 8, 128, classes=3)
    assert model.neck.in_channels == [32, 64, 128, 256] and model.neck.out_channels == 32
    assert model.backbone.base_channels == 8  # a default of the class
    assert model.roi_head.bbox_head.fc_out_channels == 128
    assert model.roi_head.bbox_head.num_classes == 3 and model.backbone.init_cfg is None
    assert small_model(name, 1, 128).neck.out_channels == 256


def test_the_table_counts_and_tells_reasons():
    ok = {recipe: dict(outcome='ok') for recipe in coverage_table.RECIPES}
    why = "TapError: recipe 'kd': student: It has none. Take another. (make.py:3)"
    refused = dict(ok, kd=dict(outcome='refused', why=why))
    rows = {
        'a/one.py': dict(pair='A: H', own=ok, foreign=ok),
        'b/two.py': dict(pair='B: H', own=refused, foreign=refused),
        'c/three.py': dict(not_judged='ImportError: no such package (x.py:1)'),
    }
    content = dict(versions=dict(mmdet='3'), configs=[*rows, 'd/four.py'], rows=rows)
    made = coverage_table.text(content)
    assert '2 configs were judged, 1 could not be (mmdet 3). 1 of 4 wait' in made
    assert '- b refused: It has none.' in made and '- `c/three.py`: no such package.' in made
    assert Path(sweep.RESULTS).name == 'coverage_mmdet.json'
