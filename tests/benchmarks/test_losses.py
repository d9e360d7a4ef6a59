"""The benchmark of the losses: equal work on both sides, and numbers that add up."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import losses, memory, timing

CPU = torch.device('cpu')
MIB = 2**20
each_loss = pytest.mark.parametrize('name', list(losses.OURS))


def test_every_loss_has_its_plain_formula():
    assert losses.OURS.keys() == losses.PLAIN.keys()
    assert [losses.parse_shape(s) for s in losses.SHAPES][-1] == (4096, 1000)


@each_loss
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_both_sides_compute_the_same_and_reach_the_student(name, dtype):
    case = losses.Case(name, (16, 10), dtype, CPU)
    case.check()
    for step in (case.ours, case.plain):
        case.clear()
        assert case.student.grad is None and not case.loss.auxiliary
        assert step() > 0
        assert case.student.grad.abs().sum() > 0 and case.student.grad.dtype == dtype
        assert all(p.grad.abs().sum() > 0 for p in case.loss.parameters())


@each_loss
def test_a_formula_that_differs_is_noticed(name):
    case = losses.Case(name, (16, 10), torch.float32, CPU)
    right = case.formula
    case.formula = lambda *args: right(*args) * 1.01
    with pytest.raises(RuntimeError, match=f'{type(case.loss).__name__} and the plain formula'):
        case.check()


def test_times_are_taken_in_turns_and_the_first_one_changes(monkeypatch):
    case = losses.Case('kd', (4, 3), torch.float32, CPU)
    seen = []
    monkeypatch.setattr(case, 'ours', lambda: seen.append('o'))
    monkeypatch.setattr(case, 'plain', lambda: seen.append('p'))
    monkeypatch.setattr(losses, 'MIN_SECONDS', 0)  # one step a timing
    ours, plain, ratio = losses.measure_time(case, repeats=3)
    assert ''.join(seen) == 'oopp' + 'p' + 'po' + 'op' + 'po'
    assert ours > 0 and plain > 0 and ratio > 0


def test_a_ratio_is_taken_within_its_round(monkeypatch):
    case = losses.Case('kd', (4, 3), torch.float32, CPU)
    # warming up twice, choosing how many; rounds: plain 2 ours 2, ours 9 plain 3, plain 30 ours 60
    lasts = iter([1, 1, 1, 2, 2, 9, 3, 30, 60])
    ticks = (t for last in lasts for t in (0, last))
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(ticks))
    assert losses.measure_time(case, repeats=3) == (9, 3, 2)


def test_ratios_are_ours_by_plain(monkeypatch):
    monkeypatch.setattr(losses, 'measure_time', lambda case, repeats: (0.003, 0.002, 1.4))
    heights = iter([3 * MIB, 4 * MIB])
    monkeypatch.setattr(memory, 'peak', lambda step, device: next(heights))
    row = losses.measure('kd', (4, 3), 'float32', CPU, repeats=1)
    assert (row['ours_ms'], row['time_ratio']) == pytest.approx((3, 1.4))
    assert (row['ours_mib'], row['plain_mib'], row['memory_ratio']) == (3, 4, 0.75)


@each_loss
def test_no_hungrier_than_the_formula(name):
    # tensors are counted, not measured: the same in every run
    case = losses.Case(name, (128, 1000), torch.float32, CPU)
    heights = []
    for step in (case.ours, case.plain):
        step()
        case.clear()
        heights.append(memory.peak(step, CPU))
    assert heights[1] >= 3 * case.student.nbytes  # the two tensors of a gradient at least
    assert heights[0] <= 1.01 * heights[1]


def test_command_prints_and_writes(tmp_path: Path, capsys):
    options = ['--losses', 'kd', 'dkd', '--shapes', '8x5', '16x4', '--dtypes', 'float32']
    rows = losses.main([*options, '--repeats', '1', '--device', 'cpu', '--out', str(tmp_path)])
    assert [(r['loss'], r['shape']) for r in rows] == [
        ('kd', '8x5'), ('kd', '16x4'), ('dkd', '8x5'), ('dkd', '16x4')
    ]  # fmt: skip
    table = (tmp_path / 'losses.md').read_text()
    assert table in capsys.readouterr().out
    for row in rows:
        assert f'| {row["time_ratio"]:.2f} |' in table
    with (tmp_path / 'losses.csv').open() as file:
        written = list(csv.DictReader(file))
    assert [float(r['ours_ms']) for r in written] == pytest.approx(
        [r['ours_ms'] for r in rows], rel=1e-3
    )
    assert {r['device'] for r in written} == {'cpu'}


@pytest.mark.parametrize('shape', ['64', '64x', 'axb', '64x1', '0x10'])
def test_wrong_shapes_are_refused(shape, capsys):
    with pytest.raises(SystemExit):
        losses.parse_args(['--shapes', shape])
    assert repr(shape) in capsys.readouterr().err
