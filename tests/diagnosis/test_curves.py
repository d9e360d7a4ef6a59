"""What is read of the logs of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmkd_plugin.diagnosis.compare.curves import read_curves


def write_log(folder: Path, session: str, lines: list[dict], tail: str = '') -> None:
    path = folder / session / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(line) for line in lines) + '\n' + tail)


def test_curves_of_a_resumed_run_count_each_iteration_once(tmp_path):
    step = [dict(loss=4.0 - i, loss_cls=1.0, time=0.5, epoch=i, step=10 * i) for i in (1, 2, 3)]
    write_log(tmp_path, '20010101_000000', step, tail='{"loss": 1.0, "ti')
    again = [dict(loss=0.5, loss_cls=0.2, time=1.0, epoch=3, step=30)]
    write_log(tmp_path, '20010101_000100', [*again, {'coco/bbox_mAP': 0.6, 'step': 3}])
    curves = read_curves(tmp_path)
    assert curves['losses']['loss'] == [(1, 3.0), (2, 2.0), (3, 0.5)]
    assert curves['seconds'] == pytest.approx(10 * 0.5 + 10 * 0.5 + 10 * 1.0)
    assert curves['metrics'] == {'coco/bbox_mAP': [(3, 0.6)]} and curves['unit'] == 'epoch'


def test_curves_of_a_run_by_iterations_and_of_one_without_a_log(tmp_path):
    assert read_curves(tmp_path)['losses'] == {}
    write_log(tmp_path, '20010101_000000', [dict(loss=1.0, time=0.5, iter=20, step=20)])
    curves = read_curves(tmp_path)
    assert curves['losses']['loss'] == [(20, 1.0)] and curves['unit'] == 'iteration'
