"""``detection.py --pair``: what is shared between pairs, tables of any task, one study."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import detection, head_methods, summary
from benchmarks.methods import TASKS


def make_runs(method: str, values: list[float], task: str, **extra: float) -> list[dict]:
    names = summary.columns(TASKS[task])
    return [
        {**dict.fromkeys(names, value), 'method': method, 'seed': seed, **extra}
        for seed, value in enumerate(values)
    ]


def test_masks_and_boxes_each_have_a_gain():
    task = TASKS['instance']
    runs = make_runs('student', [0.30, 0.32, 0.34], 'instance')
    runs += make_runs('kd+mask', [0.33, 0.35, 0.37], 'instance', box_AP=0.32)
    rows = summary.summarise(runs, ['student', 'kd+mask', 'ckd'], task)
    titles = {r['method']: head_methods.title(r['method']) for r in runs}
    table = summary.to_task_markdown(rows, task, titles, dict(kd=2.0, mask=0.5))
    lines = table.splitlines()
    assert 'gain in mask AP | gain in box AP' in lines[0]
    assert lines[3].startswith('| KD + KD of mask logits | 2 + 0.5 | 35.0 ± 2.0 |')
    assert lines[3].endswith('| +3.0 ± 0.0 | +0.0 ± 2.0 | 3/3 |')
    assert lines[4].startswith('| ckd | – | incomplete: 0 of at least 3 seeds |')
    assert len({line.count('|') for line in lines}) == 1


def test_percent_is_not_multiplied_again():
    task = TASKS['semantic']
    runs = make_runs('student', [40.0, 41.0, 42.0], 'semantic')
    row = summary.summarise(runs, ['student'], task)[0]
    assert '| 41.0 ± 1.0 |' in summary.to_task_markdown([row], task, {}, {})
    assert '| 40.0 |' in summary.to_selection_markdown([{**runs[0], 'weight': None}], task)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--methods', 'kd'], 'others need --pair'),
        (['--pair', 'nosuch'], 'digits has gfl, fcos'),
        (['--pair', 'fcos', '--methods', 'dkd'], 'expected student or kd, kd_scored, loca'),
        (['--pair', 'faster', '--methods', 'kd+nosuch'], 'joined by'),
        (['--pair', 'faster', '--select-weights', 'kd+ckd=1'], 'METHOD=W1,W2'),
    ],
)
def test_bad_arguments_are_explained(argv: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        detection.parse_args(['--dataset', 'digits', *argv])


def study(*argv: str) -> detection.DetectionStudy:
    return detection.DetectionStudy(
        detection.parse_args(['--dataset', 'digits', '--seeds', '0', *argv])
    )


def test_pairs_share_students_and_teachers():
    both = study('--pair', 'faster-gfl', '--methods', 'student', 'kd').plan(None)
    alone = study('--pair', 'gfl', '--methods', 'student').plan(None)
    features = study('--methods', 'student').plan(None)  # of the comparison without a pair
    assert alone == features
    assert alone.items() <= both.items()
    assert [f.parent.parent.name for f in both] == ['digits', 'faster-gfl']
    distilled = next(run for run in both.values() if run['terms'])
    assert distilled['terms'][0]['teacher'] == 'detections'


def test_weights_of_a_pair_are_chosen_on_images_that_are_not_reported():
    chosen = study('--pair', 'faster', '--select-weights', 'kd=1,4').plan(None)
    assert [run['weight'] for run in chosen.values()] == [None, 1.0, 4.0]
    for run in chosen.values():
        assert run['options']['val_dataloader.dataset.digits.seed'] == 1
        assert 'train_dataloader.dataset.digits.seed' not in run['options']
    semantic = detection.prepare_data('digits', True, head_methods.PAIRS['digits']['pspnet'])
    assert 'val_evaluator.ann_file' not in semantic


@pytest.mark.slow
def test_a_pair_of_segmenters_from_end_to_end(tmp_path, digits_root, monkeypatch):
    pytest.importorskip('mmseg')
    pair = head_methods.PAIRS['digits']['pspnet']
    files = {}
    settings = dict(image_size=128, train=24, val=12, seed=0)
    loader = dict(dataset=dict(data_root=str(digits_root), digits=settings))
    for role in ('teacher', 'student'):
        lines = [f'_base_ = {str(Path(getattr(pair, role)).resolve())!r}']
        lines += [f'{split}_dataloader = {loader!r}' for split in ('train', 'val', 'test')]
        files[role] = tmp_path / f'{role}.py'
        files[role].write_text('\n'.join(lines) + '\n')
    tiny = dataclasses.replace(
        pair, teacher=str(files['teacher']), student=str(files['student']), epochs=(1, 1)
    )
    monkeypatch.setitem(head_methods.PAIRS['digits'], 'pspnet', tiny)
    args = ['--dataset', 'digits', '--pair', 'pspnet', '--methods', 'student', 'gdd_channel+kd']
    args += ['--work-dir', str(tmp_path / 'work'), '--results', str(tmp_path / 'results')]
    assert detection.main([*args, '--seeds', '0']) == 0
    text = (tmp_path / 'results/digits_pspnet.md').read_text()
    assert '| GDD + KD | 1 + 0.3 | incomplete: 1 of at least 3 seeds |' in text
    content = json.loads((tmp_path / 'results/digits_pspnet.json').read_text())
    assert [run['task'] for run in content['runs']] == ['semantic'] * 2
    assert all(0 < run['mIoU'] <= 100 for run in content['runs'])
    reported = ['--report-only', '--seeds', '0', '1']
    assert detection.main([*args, *reported]) == 0  # and trains no second seed
    assert not (tmp_path / 'work/digits/pspnet/runs/student-seed1').exists()
    log = (tmp_path / 'work/digits/pspnet/runs/gdd_channel+kd-seed0/log.txt').read_text()
    assert 'loss_gdd_channel' in log and 'loss_kd' in log
