"""The budget of logit terms on dense heads, and the benchmark that measures it."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import logit_memory as bench


@pytest.fixture(scope='module')
def retinanet() -> bench.Maps:
    """One image of 800x1280: 191,970 anchors of 80 classes, 61 MB of logits."""
    maps = bench.Maps((800, 1280))
    assert maps.cells * 9 == 191_970 and round(maps.bytes / 1e6) == 61
    return maps


@pytest.mark.parametrize(('select', 'most'), bench.TARGETS.items())
def test_budget_of_a_kl_term_on_retinanet(retinanet, select, most):
    # tensors are counted, not measured: the same in every run
    step = bench.make_step('kd', select, retinanet)
    forward, both = bench.measure_memory(step, retinanet)
    if select == 'teacher_topk':
        assert forward <= most * 1e6
        assert both <= retinanet.bytes + 2e6  # the gradient of the maps, which any loss needs
    else:
        assert retinanet.bytes < both <= most * 1e6
        assert forward <= most / 10 * 1e6


def test_the_plain_formula_needs_more(retinanet):
    _, both = bench.measure_memory(lambda: bench.plain(retinanet), retinanet)
    assert both > 180e6


@pytest.mark.parametrize(('name', 'select'), [('loca', 'positive'), ('ckd', None), ('ipwd', None)])
def test_selected_rows_need_little_beside_the_gradient(retinanet, name, select):
    select = select or bench.LOSSES[name][1][0]
    forward, both = bench.measure_memory(bench.make_step(name, select, retinanet), retinanet)
    assert forward <= 25e6 and both <= retinanet.bytes + 5e6


def test_memory_grows_no_faster_than_the_batch():
    heights = []
    for images in (1, 4):
        maps = bench.Maps((256, 320), images, anchors=3, classes=20)
        step = bench.make_step('kd', 'score_weighted', maps)
        heights.append(bench.measure_memory(step, maps)[1] / maps.bytes)
    assert heights[1] <= heights[0] < 4  # small maps are one part, of a few temporary tensors


def test_command_prints_and_writes(tmp_path, capsys):
    options = '--size 64 96 --anchors 2 --classes 5 --repeats 1 --device cpu --images 2'
    rows = bench.main([*options.split(), '--out', str(tmp_path)])
    assert [r['loss'] for r in rows][:2] == ['plain formula', 'kd']
    table = (tmp_path / 'logit_memory.md').read_text()
    assert table in capsys.readouterr().out
    written = json.loads((tmp_path / 'logit_memory.json').read_text())
    assert written['about']['anchors'] == 2 * (96 + 24 + 6 + 2 + 1)
    for row, saved in zip(rows, written['rows']):
        assert saved['step_mb'] == pytest.approx(row['step_mb'], abs=1e-3)
        assert f'| {row["step_mb"]:.1f} |' in table and row['time_ratio'] > 0


def test_a_formula_that_differs_is_noticed(monkeypatch):
    maps = bench.Maps((64, 64), anchors=1, classes=3)
    right = bench.plain
    monkeypatch.setattr(bench, 'plain', lambda maps: right(maps) * 1.01)
    with pytest.raises(RuntimeError, match='the plain formula gives'):
        bench.measure(maps, 1)


def test_the_maps_are_those_of_an_anchor_head():
    maps = bench.Maps((64, 96), images=2, anchors=3, classes=4)
    student, _ = maps.predictions()
    level, x = student.levels[0], maps.student[0]
    assert level.logits.shape == (2, 8 * 12, 3, 4) and level.logits.data_ptr() == x.data_ptr()
    assert torch.equal(level.logits[1, 5 * 12 + 7, 2], x[1, 8:12, 5, 7])
