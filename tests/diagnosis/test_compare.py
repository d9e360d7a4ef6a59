"""`mmkd compare` on work dirs of every task, and on those that cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import (
    classification_config,
    classifier_state,
    detection_config,
    oracle_state,
    segmentation_config,
    work_dir,
)
from html_page import Page

from mmkd_plugin.cli.compare import main
from mmkd_plugin.diagnosis.compare import predict
from mmkd_plugin.diagnosis.compare.comparison import Comparison, compare_runs
from mmkd_plugin.diagnosis.compare.work_dirs import find_run
from mmkd_plugin.report.build import build_report

PINNED = {
    'version', 'names', 'metric', 'runs', 'gain', 'per_class', 'per_size', 'per_iou', 'errors',
    'cost',
}  # fmt: skip


def make(folder: Path, task: str, root: Path) -> list[Path]:
    """Work dirs of a bad and of a better run, two seeds each."""
    if task == 'classification':
        config = classification_config()
        states = [classifier_state(seed, steps) for steps in (3, 8) for seed in (0, 1)]
    else:
        made = dict(
            detection=lambda: detection_config(root),
            instances=lambda: detection_config(root, masks=True),
            segmentation=lambda: segmentation_config(root),
        )
        config = made[task]()
        states = [oracle_state(noise, seed) for noise in (0.6, 0.3) for seed in (0, 1)]
    names = ['a0', 'a1', 'b0', 'b1']
    return [
        work_dir(folder / name, config, state, seed=int(name[1]))
        for name, state in zip(names, states)
    ]


def compared(base: list[Path], run: list[Path], **options) -> Comparison:
    return compare_runs(
        ('alone', [find_run(folder) for folder in base]),
        ('helped', [find_run(folder) for folder in run]),
        **options,
    )


@pytest.fixture(scope='module')
def detectors(tmp_path_factory, digits_root) -> list[Path]:
    return make(tmp_path_factory.mktemp('detection'), 'detection', digits_root)


@pytest.fixture(scope='module')
def classifiers(tmp_path_factory, digits_root) -> list[Path]:
    pytest.importorskip('sklearn')
    return make(tmp_path_factory.mktemp('classification'), 'classification', digits_root)


@pytest.fixture(scope='module')
def detection(detectors) -> Comparison:
    return compared(detectors[:2], detectors[2:])


def check_numbers(found: dict, metric: str) -> None:
    """What holds for every comparison of two pairs in which the second side is better."""
    assert set(found) >= PINNED and found['version'] == 1
    assert found['metric'] == metric
    runs = [found['runs'][name] for name in found['names']]
    assert [[one['seed'] for one in side] for side in runs] == [[0, 1], [0, 1]]
    gains = [b['value'] - a['value'] for a, b in zip(*runs)]
    gain = found['gain']
    assert gain['mean'] == pytest.approx(np.mean(gains), abs=1e-12) and gain['mean'] > 0
    assert gain['low'] < gain['mean'] < gain['high']
    for name, side in zip(found['names'], runs):
        values = [value for value in found['per_class'][name].values() if value is not None]
        assert np.mean(values) == pytest.approx(np.mean([one['value'] for one in side]), rel=0.02)
        assert found['cost'][name]['parameters'] > 0
        assert found['cost'][name]['seconds_per_image'] > 0
    assert not found['notes'], 'the metric of the interval is that of the evaluator'


def test_detectors(detection):
    found = json.loads(json.dumps(detection.as_json(), allow_nan=False))
    check_numbers(found, 'coco/bbox_mAP')
    for name in found['names']:
        assert list(found['per_size'][name]) == ['small', 'medium', 'large']
        assert list(found['per_iou'][name])[::5] == ['0.50', '0.75']
        assert list(found['errors'][name]) == [
            'classification', 'localization', 'both', 'duplicate', 'background', 'missed',
        ]  # fmt: skip
        metrics = detection.groups[name][0].found.metrics
        curve = detection.groups[name][0].matches
        assert curve is not None and metrics['coco/bbox_mAP_50'] > metrics['coco/bbox_mAP']
    errors = [found['errors'][name]['localization'] for name in found['names']]
    assert errors[0] > errors[1] > 0
    assert set(found['class_gains']) <= set(found['per_class']['alone'])


@pytest.mark.parametrize('part', ['_50', '_75', '_s', '_m'])
def test_the_other_numbers_of_coco_are_those_of_the_evaluator(detectors, part):
    found = compared(detectors[:1], detectors[2:3], metric=f'coco/bbox_mAP{part}')
    assert not found.notes and found.gain['low'] < found.gain['mean'] < found.gain['high']


def test_exchanged_sides_and_a_run_against_itself(detectors, detection):
    back = compared(detectors[2:], detectors[:2])
    gain, other = detection.gain, back.gain
    assert (gain['mean'], gain['low'], gain['high']) == (
        -other['mean'], -other['high'], -other['low'],
    )  # fmt: skip
    same = compared(detectors[:2], detectors[:2])
    assert same.gain == dict(mean=0.0, low=0.0, high=0.0)
    assert all(gain['mean'] == gain['high'] == 0 for gain in same.class_gains.values())


def test_masks(tmp_path, digits_root):
    folders = make(tmp_path, 'instances', digits_root)
    check_numbers(compared(folders[:2], folders[2:]).as_json(), 'coco/segm_mAP')
    boxes = compared(folders[:1], folders[2:3], metric='coco/bbox_mAP')
    assert not boxes.notes


def test_segmenters(tmp_path, digits_root):
    pytest.importorskip('mmseg')
    folders = make(tmp_path, 'segmentation', digits_root)
    comparison = compared(folders[:2], folders[2:])
    found = comparison.as_json()
    check_numbers(found, 'mIoU')
    assert found['errors'] == found['per_size'] == found['per_iou'] == {}
    assert not compared(folders[:1], folders[2:3], metric='aAcc').notes
    page = Page(build_report(comparison, 2))
    assert page.open == [] and page.tags.count('image') == 6


def test_classifiers(classifiers):
    comparison = compared(classifiers[:2], classifiers[2:])
    found = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    check_numbers(found, 'accuracy/top1')
    for name in found['names']:
        told = found['calibration'][name]
        assert 0 <= told['ece'] <= 1 and sum(b['images'] for b in told['bins']) == 120
    assert not compared(classifiers[:1], classifiers[2:3], metric='accuracy/top5').notes
    page = Page(build_report(comparison, 3))
    assert page.tags.count('image') == 3 and 'alone' in page.words


def test_a_metric_that_only_its_evaluator_knows(tmp_path):
    pytest.importorskip('sklearn')
    config = classification_config()
    config.val_evaluator = dict(type='mmengine.RowF1')
    folders = [
        work_dir(tmp_path / name, config, classifier_state(0, steps))
        for name, steps in (('a', 2), ('b', 8))
    ]
    found = compared(folders[:1], folders[1:])
    assert compared(folders[:1], folders[1:]).gain == found.gain  # from the files, too
    assert found.metric == 'f1' and found.gain['low'] < found.gain['mean'] < found.gain['high']


# -- work dirs ------------------------------------------------------------------------------------


def test_predictions_are_kept_until_checkpoint_or_set_change(detectors, tmp_path, monkeypatch):
    folder = tmp_path / 'copy'
    shutil.copytree(detectors[0], folder)
    (folder / predict.CACHE).unlink(missing_ok=True)
    first = predict.predictions_of(find_run(folder))
    assert (folder / predict.CACHE).is_file()

    def refuse(*args):
        raise AssertionError('predicted again')

    monkeypatch.setattr(predict, '_predict', refuse)
    again = predict.predictions_of(find_run(folder))
    assert again.metrics == first.metrics and again.names == first.names
    assert np.array_equal(again.found.box, first.found.box)
    checkpoint = torch.load(folder / 'epoch_2.pth')
    checkpoint['state_dict'] = oracle_state(0.1)
    torch.save(checkpoint, folder / 'epoch_2.pth')
    with pytest.raises(AssertionError, match='predicted again'):
        predict.predictions_of(find_run(folder))
    (folder / predict.CACHE).write_bytes(b'damaged')
    with pytest.raises(AssertionError, match='predicted again'):
        predict.predictions_of(find_run(folder))


def test_a_folder_that_was_moved_and_one_without_the_note(detectors, tmp_path):
    shutil.copytree(detectors[0], tmp_path / 'moved')
    run = find_run(tmp_path / 'moved')  # last_checkpoint names the old place
    assert run.checkpoint.parent == tmp_path / 'moved' and run.seed == 0
    (tmp_path / 'moved' / 'last_checkpoint').unlink()
    shutil.copy(tmp_path / 'moved' / 'epoch_2.pth', tmp_path / 'moved' / 'epoch_10.pth')
    assert find_run(tmp_path / 'moved').checkpoint.name == 'epoch_10.pth'
    shutil.copy(tmp_path / 'moved' / 'epoch_2.pth', tmp_path / 'moved' / 'best_x_epoch_1.pth')
    assert find_run(tmp_path / 'moved', best=True).checkpoint.name == 'best_x_epoch_1.pth'


def test_seeds_pair_runs_in_any_order(detectors, detection):
    mixed = compared(detectors[:2], detectors[:1:-1])
    assert mixed.gain == detection.gain
    assert [one.run.seed for pair in mixed.pairs for one in pair] == [0, 0, 1, 1]
    other = compared(detectors[:1], detectors[3:])
    assert other.notes and 'order given' in other.notes[0]
    fewer = compared(detectors[:2], detectors[2:3])
    assert len(fewer.pairs) == 1 and 'Seeds 1 are on one side only' in fewer.notes[0]


# -- the command ----------------------------------------------------------------------------------


def test_the_command_writes_report_and_numbers(detectors, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '160')
    out, numbers = tmp_path / 'report.html', tmp_path / 'numbers.json'
    main([*map(str, detectors[:2]), '--with', *map(str, detectors[2:]), '--names', 'alone',
          'gdd <x>', '--out', str(out), '--json', str(numbers), '--pictures', '4'])  # fmt: skip
    told = capsys.readouterr().out
    assert 'coco/bbox_mAP on 12 images' in told and 'gdd <x> is better' in told
    check_numbers(json.loads(numbers.read_text()), 'coco/bbox_mAP')
    text = out.read_text(encoding='utf-8')
    page = Page(text)
    assert page.open == []
    assert page.loads and all(link.startswith('data:image/') for link in page.loads)
    assert not re.search(r'url\(|@import|<script|<link', text)
    assert text.count('prefers-color-scheme: dark') == 1 + page.tags.count('picture')
    assert page.tags.count('image') == 12  # truth, base and run of four images
    assert not re.search(r'<!--[A-Z]+-->', text), 'a part of the page was not filled in'
    words = ' '.join(page.words)
    for expected in ('gdd <x> against alone', 'Truth: ', 'missed', '95 % interval', 'epoch_2.pth'):
        assert expected in words, expected
    hovers = re.findall(r'<title>(\d [01]\.\d\d, (?:right|wrong))</title>', text)
    assert len(hovers) > 10


def fail(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    said = str(stopped.value)
    assert stopped.value.code not in (0, 2) and '\n' not in said
    assert said.startswith('error: '), said
    return said


def changed(folder: Path, to: Path, old: str, new: str) -> Path:
    """A copy of a work dir with another text in its config."""
    shutil.copytree(folder, to)
    (to / predict.CACHE).unlink(missing_ok=True)
    for path in (to / 'config.py', *to.glob('*/vis_data/config.py')):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return to


def test_work_dirs_that_lack_something(detectors, tmp_path, capsys):
    good = str(detectors[0])
    nowhere = str(tmp_path / 'nowhere')
    assert 'There is no work dir' in fail(capsys, nowhere, '--with', good)
    (tmp_path / 'empty').mkdir()
    assert 'has no config' in fail(capsys, good, '--with', str(tmp_path / 'empty'))
    bare = tmp_path / 'bare'
    shutil.copytree(detectors[0], bare)
    (bare / 'epoch_2.pth').unlink()
    said = fail(capsys, good, '--with', str(bare))
    assert 'has no checkpoint' in said and '--resume' in said
    assert 'has no best_*.pth' in fail(capsys, good, '--with', good, '--best')
    (bare / 'epoch_2.pth').write_bytes(b'PK\x03\x04 half a file')
    assert 'damaged' in fail(capsys, good, '--with', str(bare))
    assert 'no folder' in fail(capsys, good, '--with', good, '--out', f'{nowhere}/x.html')


def test_a_run_that_is_named_twice(detectors, capsys):
    first, second = detectors[:2]
    again = f'{first}/../{first.name}'
    text = fail(capsys, str(first), again, '--with', str(second))
    assert 'are one work dir' in text and first.name in text


def test_an_interrupted_run(digits_root, detectors, tmp_path, capsys):
    half = work_dir(tmp_path / 'half', detection_config(digits_root), oracle_state(0.2), 0, epoch=1)
    said = fail(capsys, str(detectors[0]), '--with', str(half))
    assert 'interrupted' in said and 'epoch 1 of 2' in said and '--unfinished' in said
    main([str(detectors[0]), '--with', str(half), '--unfinished'])
    assert 'run is better' in ' '.join(capsys.readouterr().out.split())


def test_runs_of_other_sets_classes_and_tasks(
    digits_root, detectors, classifiers, tmp_path, capsys
):
    good = str(detectors[0])
    few = changed(detectors[2], tmp_path / 'few', "ann_file='annotations/val.json'",
                  "indices=5, ann_file='annotations/val.json'")  # fmt: skip
    said = fail(capsys, good, '--with', str(few))
    assert 'another data set' in said and '12 images' in said and '5 images' in said
    names = "metainfo=dict(classes=('0', '1', '2')), ann_file='annotations/val.json'"
    three = changed(detectors[2], tmp_path / 'three', "ann_file='annotations/val.json'", names)
    said = fail(capsys, good, '--with', str(three))
    assert 'another number of classes, 10 (0, 1, 2, ...) and 3 (0, 1, 2)' in said
    wrong = changed(detectors[2], tmp_path / 'wrong', 'OracleDetector', 'OneClassMore')
    assert 'predicts another number of classes' in fail(capsys, good, '--with', str(wrong))
    said = fail(capsys, good, '--with', str(classifiers[0]))
    assert 'one predicts detection, the other classification' in said


def test_configs_without_images_or_metric(digits_root, detectors, tmp_path, capsys):
    good = str(detectors[0])
    config = detection_config(digits_root)
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        config[key] = None
    none = work_dir(tmp_path / 'none', config, oracle_state(0.2))
    assert 'neither val_dataloader' in fail(capsys, good, '--with', str(none))
    empty = changed(detectors[2], tmp_path / 'empty', "ann_file='annotations/val.json'",
                    "indices=0, ann_file='annotations/val.json'")  # fmt: skip
    assert 'has 0 images' in fail(capsys, good, '--with', str(empty))
    said = fail(capsys, good, '--with', str(detectors[2]), '--metric', 'coco/bbox_mAp')
    assert "nearest: 'coco/bbox_mAP'" in said
    said = fail(capsys, good, '--with', str(detectors[2]), '--metric', 'mIoU')
    assert "give no metric 'mIoU'" in said


def test_weights_and_metrics_that_are_no_numbers(digits_root, detectors, tmp_path, capsys):
    good = str(detectors[0])
    config = detection_config(digits_root)
    bad = work_dir(tmp_path / 'nan', config, oracle_state(float('nan')))
    said = fail(capsys, good, '--with', str(bad))
    assert 'no trained network has' in said and 'diverged' in said
    kept = torch.load(detectors[2] / predict.CACHE) if (
        detectors[2] / predict.CACHE).is_file() else None  # fmt: skip
    shutil.copytree(detectors[2], tmp_path / 'inf')
    if kept is None:
        predict.predictions_of(find_run(tmp_path / 'inf'))
        kept = torch.load(tmp_path / 'inf' / predict.CACHE)
    kept['predictions']['metrics']['coco/bbox_mAP'] = float('nan')
    torch.save(kept, tmp_path / 'inf' / predict.CACHE)
    said = fail(capsys, good, '--with', str(tmp_path / 'inf'))
    assert 'coco/bbox_mAP' in said and 'is nan' in said


def test_weights_of_another_network(detectors, tmp_path, capsys):
    other = tmp_path / 'other'
    shutil.copytree(detectors[0], other)
    torch.save(dict(meta=dict(epoch=2), state_dict=dict(x=torch.zeros(2))), other / 'epoch_2.pth')
    said = fail(capsys, str(detectors[0]), '--with', str(other))
    assert 'does not fit the model of the config' in said
