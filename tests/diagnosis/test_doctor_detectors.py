"""The doctor on a detector that has learnt a little in half a minute."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import examined_pairs as pairs
import pytest
from detectors import model_config
from examined_pairs import CLASSES, diagnose, distilled, found

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def gfl(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gfl')
    pairs.draw_scenes(folder / 'scenes', dict(train=160, val=60))
    student, teacher = (
        pairs.detector(model_config('GFL', width, len(CLASSES)), folder / 'scenes')
        for width in (16, 32)
    )
    return SimpleNamespace(
        student_config=student,
        teacher_config=teacher,
        teacher=pairs.train(teacher, 120, folder / 'teacher.pth', 3e-3),
        student=pairs.train(student, 40, folder / 'student.pth', 2e-3),
        random=pairs.train(teacher, 0, folder / 'random.pth', 3e-3, seed=7),
    )


def test_a_healthy_pair(gfl):
    cfg = distilled(gfl.student_config, gfl.teacher_config, gfl.teacher, recipe='gdd+kd')
    report = diagnose(cfg, gfl.student)
    assert not report.findings and report.answer == 'helps'
    assert report.teacher['coco/bbox_mAP'] > report.student['coco/bbox_mAP']
    assert report.terms['kd'].rows > 0 and report.terms['gdd'].rows is None
    assert report.terms['kd'].teacher_right > report.terms['kd'].student_right
    # on some of the images only, which the metric must not count as missed
    few = diagnose(cfg, gfl.student, images=16, batches=2)
    assert not found(few, 'error') and few.teacher['coco/bbox_mAP'] > 0.1


@pytest.mark.parametrize(
    'change, code',
    [
        (dict(bgr_to_rgb=False), 'channel-order'),
        (dict(mean=[0.0] * 3, std=[1.0] * 3), 'normalization'),
    ],
)
def test_images_that_are_meant_otherwise(gfl, change, code):
    teacher = copy.deepcopy(gfl.teacher_config)
    teacher['model']['data_preprocessor'].update(change)
    report = diagnose(distilled(gfl.student_config, teacher, gfl.teacher), gfl.student)
    assert found(report, 'error') == {code}


def test_an_untrained_teacher_and_one_that_is_the_student(gfl):
    report = diagnose(distilled(gfl.student_config, gfl.teacher_config, gfl.random))
    assert found(report, 'error') == {'untrained-teacher'}
    same = distilled(gfl.teacher_config, gfl.teacher_config, gfl.teacher)
    report = diagnose(same, gfl.teacher)
    assert found(report) == {'nothing-to-learn'}
    assert {f.where for f in report.findings} == {'teacher', 'kd'}


def test_a_term_without_rows(gfl, tmp_path):
    """Positives of a training set in which nothing is labelled."""
    cfg = distilled(
        gfl.student_config,
        gfl.teacher_config,
        gfl.teacher,
        terms=[dict(loss=dict(type='KDLoss'), student='cls_logits', select='positive')],
    )
    file = Path(cfg.train_dataloader.dataset.ann_file)
    content = dict(json.loads(file.read_text()), annotations=[])
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'empty.json')
    (tmp_path / 'empty.json').write_text(json.dumps(content))
    report = diagnose(cfg, gfl.student)
    assert found(report) == {'no-rows'} and report.answer == 'does not help'
