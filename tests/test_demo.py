"""The demo: what it says of its runs (fast), and the whole of it on tiny data (slow)."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from html_page import Page

from mmkd_plugin.cli import demo, demo_runs
from mmkd_plugin.diagnosis.compare.comparison import Comparison
from mmkd_plugin.report import gallery

ROOT = Path(__file__).resolve().parents[1]


def sides(values: dict[str, list[float]]) -> Comparison:
    """A comparison of which the demo reads the values alone."""
    groups = {
        demo.SIDES[role]: [SimpleNamespace(value=value) for value in own]
        for role, own in values.items()
    }
    pairs = list(zip(groups['Student alone'], groups['Student distilled']))
    gain = statistics.fmean(b.value - a.value for a, b in pairs)
    return SimpleNamespace(groups=groups, pairs=pairs, gain=dict(mean=gain))


@pytest.mark.parametrize(
    'student, distilled, teacher, expected',
    [
        ([0.6], [0.65], 0.75, ['SEEDS=3', '33% of the way']),
        ([0.6, 0.61], [0.65, 0.66], 0.705, ['50% of the way']),
        ([0.6], [0.55], 0.75, ['did not help']),
        ([0.8, 0.8], [0.9, 0.91], 0.75, ['The teacher itself was no better']),
    ],
)
def test_the_way_to_the_teacher_is_told_honestly(student, distilled, teacher, expected):
    values = dict(student=student, distilled=distilled, teacher=[teacher])
    told = demo.share_of_the_way(sides(values))
    for part in expected:
        assert part in told, told
    assert ('SEEDS=3' in told) == (len(student) == 1)


def test_detections_are_judged_once_per_object():
    truth = [dict(box=[0, 0, 10, 10], label=1)]
    twice = [
        dict(box=[0, 0, 10, 9], label=1, score=0.5),
        dict(box=[0, 0, 10, 10], label=1, score=0.9),
    ]
    assert gallery.judge(twice, truth) == ([False, True], [True])
    beside = [dict(box=[6, 0, 16, 10], label=1, score=0.9)]
    assert gallery.judge(beside, truth) == ([False], [False])


def test_a_run_is_reused_only_with_the_same_settings_and_teacher(tmp_path):
    runs = demo_runs
    teacher = runs.DemoRun('teacher', 0, 'configs/demo/gfl_r18_digits.py', tmp_path / 't', 8, [])
    teacher.folder.mkdir()
    teacher.checkpoint.write_bytes(b'weights')
    config = 'configs/demo/gdd_gfl-r18_gfl-r18-quarter_digits.py'

    def distilled(*options):
        folder = tmp_path / 'd'
        return runs.DemoRun('distilled', 0, config, folder, 8, list(options), teacher=teacher)

    run = distilled()
    run.folder.mkdir()
    mark = run.fingerprint()
    run.write_note(fingerprint=mark, finished=True)
    assert not run.is_finished(mark)  # noted, but its checkpoint is gone
    run.checkpoint.write_bytes(b'student')
    assert distilled().is_finished(distilled().fingerprint())
    other = distilled('randomness.seed=1')
    assert not other.is_finished(other.fingerprint())
    teacher.checkpoint.write_bytes(b'other weights')
    assert not distilled().is_finished(distilled().fingerprint())


TINY = [
    '--epochs',
    '1',
    '--train-images',
    '32',
    '--val-images',
    '8',
    '--pictures',
    '2',
    '--cfg-options',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_from_start_to_report_and_again(tmp_path):
    def started(*extra: str) -> str:
        command = [
            sys.executable,
            'tools/demo.py',
            '--work-dir',
            str(tmp_path / 'demo'),
            '--data-root',
            str(tmp_path / 'digits'),
            *extra,
            *TINY,
        ]
        env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', COLUMNS='200')
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = started()
    for title in demo.SIDES.values():
        assert title in first
    page = (tmp_path / 'demo' / 'report.html').read_text(encoding='utf-8')
    assert all(link.startswith('data:image/') for link in Page(page).loads)
    log = next((tmp_path / 'demo' / 'distilled_seed0').glob('*/vis_data/scalars.json'))
    assert '"loss_gdd' in log.read_text()
    again = started()
    assert again.count('trained already, reusing') == 3
    anew = started('--retrain-teacher')
    assert 'teacher: training anew, as asked' in anew
    assert 'student, seed 0: trained already, reusing' in anew
