"""The demo: its report from a small fake result (fast), and the whole of it on tiny data (slow)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmkd_plugin.cli import demo_runs
from mmkd_plugin.visualization import charts, gallery, report

ROOT = Path(__file__).resolve().parents[1]


def fake_run(role: str, seed: int, ap: float) -> dict:
    losses = {'loss': [[10, 2.0], [20, 1.0]], 'loss_cls': [[10, 0.5], [20, 0.25]]}
    if role == 'distilled':
        losses['loss_gdd'] = [[10, 0.75], [20, 0.5]]
    return dict(
        role=role,
        seed=seed,
        reused=role == 'teacher',
        command=f'python train {role}',
        losses=losses,
        iterations=20,
        val=[[1, ap / 2], [2, ap]],
        ap=ap,
        ap50=ap + 0.1,
        ap75=ap + 0.05,
        ap_per_class={'0': ap, '1': ap - 0.1},
        seconds=60.0 + seed,
    )


def fake_results(student: list[float], distilled: list[float]) -> dict:
    runs = [fake_run('teacher', 0, 0.75)]
    for seed, (alone, helped) in enumerate(zip(student, distilled)):
        runs += [fake_run('student', seed, alone), fake_run('distilled', seed, helped)]
    jpeg = cv2.imencode('.jpg', np.full((64, 64, 3), 90, np.uint8))[1].tobytes()
    truth = [dict(box=[4, 4, 20, 24], label=3), dict(box=[30, 30, 50, 60], label=7)]
    found = [
        dict(box=[4, 5, 20, 24], label=3, score=0.9),
        dict(box=[30, 30, 50, 60], label=1, score=0.5),
    ]
    models = {role: dict(params=1_500_000, flops=2.5e8, image_size=128) for role in charts.ROLES}
    return dict(
        command='python tools/demo.py --seeds <2>',
        date='2001-02-03 04:05:06',
        seeds=[0, 1],
        epochs=2,
        machine=dict(cores=2, torch='9.9.9'),
        configs={role: f'{role}.py' for role in charts.ROLES},
        models=models,
        runs=runs,
        gallery=[dict(jpeg=jpeg, size=[64, 64], truth=truth, student=found, distilled=found[:1])],
    )


class Page(HTMLParser):
    """Collects what a browser would load, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.words, self.tags, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ('meta', 'img', 'image', 'rect', 'link'):
            self.open.append(tag)
        self.loads += [value for key, value in attrs if key in ('src', 'href', 'srcset', 'data')]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ('src', 'href', 'srcset', 'data')]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_report_is_self_contained_and_shows_everything():
    text = report.build_html(fake_results([0.6, 0.64], [0.66, 0.68]))
    page = Page(text)
    assert page.open == []
    assert page.loads and all(link.startswith('data:image/') for link in page.loads)
    assert not re.search(r'url\(|@import|<script|<link', text)
    assert page.tags.count('img') == 3  # AP, losses, classes
    assert page.tags.count('image') == 3  # truth, student, distilled of the one picture
    words = ' '.join(page.words)
    for expected in (
        '0.620 ± 0.028',
        '0.670 ± 0.014',
        '1.50 M',
        '0.250',
        'python tools/demo.py --seeds <2>',
        '2001-02-03',
        '9.9.9',
        'Truth: 2 digits',
        'Student alone: 1 of 2 found, 1 wrong',
        'Student distilled: 1 of 2 found, 0 wrong',
        'Teacher, seed 0 (reused)',
    ):
        assert expected in words, expected
    assert not re.search(r'<!--[A-Z]+-->', text), 'a part of the page was not filled in'
    assert 'width=device-width' in text


def test_loss_chart_has_a_panel_for_each_term():
    import base64

    code = re.search(r'base64,([^"]+)', charts.loss_chart(fake_results([0.6], [0.7]))).group(1)
    svg = base64.b64decode(code).decode()
    visible = [key for key in ('loss', 'loss_cls', 'loss_gdd') if f'<!-- {key} -->' in svg]
    assert visible == ['loss', 'loss_cls', 'loss_gdd']


@pytest.mark.parametrize(
    'student, distilled, expected',
    [
        ([0.6], [0.65], ['raised AP by 0.050', 'one pair of runs', 'SEEDS=3', '33%']),
        ([0.6], [0.55], ['did not help: AP fell by 0.050']),
        ([0.6], [0.6], ['did not help: AP is the same']),
        ([0.6, 0.61, 0.62], [0.65, 0.66, 0.671], ['+0.050', 'in 3 of 3', 'Distillation helped']),
        ([0.6, 0.61, 0.62], [0.7, 0.55, 0.61], ['no proof of a gain', 'better in 1 of 3']),
        ([0.6, 0.61], [0.58, 0.6], ['-0.015', 'Distillation did not help.']),
        ([0.8, 0.8], [0.9, 0.91], ['The teacher itself was no better']),
    ],
)
def test_verdict_is_honest(student, distilled, expected):
    told = report.verdict(fake_results(student, distilled))
    for part in expected:
        assert part in told, told
    if distilled < student:
        assert 'helped' not in told and 'raised' not in told


def test_seeds_are_paired_not_their_order():
    results = fake_results([0.5, 0.7], [0.6, 0.8])
    results['runs'] = results['runs'][:1] + results['runs'][:0:-1]
    assert report.gains(results) == pytest.approx([0.1, 0.1])


def test_detections_are_judged_once_per_object():
    truth = [dict(box=[0, 0, 10, 10], label=1)]
    twice = [
        dict(box=[0, 0, 10, 9], label=1, score=0.5),
        dict(box=[0, 0, 10, 10], label=1, score=0.9),
    ]
    assert gallery.judge(twice, truth) == ([False, True], [True])
    beside = [dict(box=[6, 0, 16, 10], label=1, score=0.9)]
    assert gallery.judge(beside, truth) == ([False], [False])


def write_log(folder: Path, session: str, lines: list[dict], tail: str = '') -> None:
    path = folder / session / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(line) for line in lines) + '\n' + tail)


def test_curves_of_a_resumed_run_count_each_iteration_once(tmp_path):
    runs = demo_runs
    step = [dict(loss=4.0 - i, loss_cls=1.0, time=0.5, epoch=1, step=10 * i) for i in (1, 2, 3)]
    write_log(tmp_path, '20010101_000000', step, tail='{"loss": 1.0, "ti')
    again = [dict(loss=0.5, loss_cls=0.2, time=1.0, epoch=2, step=30)]
    metric = {
        'coco/bbox_mAP': 0.6,
        'coco/bbox_mAP_50': 0.8,
        'coco/bbox_mAP_75': 0.7,
        'coco/3_precision': 0.4,
        'step': 2,
    }
    write_log(tmp_path, '20010101_000100', [*again, metric])
    curves = runs.read_curves(tmp_path)
    assert curves['losses']['loss'] == [[10, 3.0], [20, 2.0], [30, 0.5]]
    assert curves['seconds'] == pytest.approx(10 * 0.5 + 10 * 0.5 + 10 * 1.0)
    assert curves['val'] == [[2, 0.6]] and curves['ap_per_class'] == {'3': 0.4}


def test_a_model_that_detects_nothing_has_an_ap_of_zero(tmp_path):
    runs = demo_runs
    write_log(tmp_path, '20010101_000000', [{'time': 0.1, 'data_time': 0.1, 'step': 1}])
    curves = runs.read_curves(tmp_path)
    assert curves['ap'] == curves['ap75'] == 0.0 and curves['val'] == [[1, 0.0]]


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
    def demo(*extra: str) -> str:
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

    first = demo()
    for title in charts.ROLES.values():
        assert title in first
    page = (tmp_path / 'demo' / 'report.html').read_text(encoding='utf-8')
    assert all(link.startswith('data:image/') for link in Page(page).loads)
    log = next((tmp_path / 'demo' / 'distilled_seed0').glob('*/vis_data/scalars.json'))
    assert '"loss_gdd' in log.read_text()
    again = demo()
    assert again.count('trained already, reusing') == 3
    anew = demo('--retrain-teacher')
    assert 'teacher: training anew, as asked' in anew
    assert 'student, seed 0: trained already, reusing' in anew
