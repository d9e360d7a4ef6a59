"""Boxes in real trainings: the command line, two iterations on the digits, all kinds of heads."""

from __future__ import annotations

import json

import pytest
import torch
from detectors import FAMILIES, WIDTH, model_config, run_config
from mmengine.config import Config

from mmkd_plugin.cli import train
from mmkd_plugin.teacher.building import build_model, draw_weights

PAIRS = [
    ('GFL', 'GFL'),
    ('Faster R-CNN', 'Faster R-CNN'),
    ('Deformable DETR', 'Deformable DETR'),
    ('Deformable DETR', 'FCOS'),  # from here on what the teacher detects
    ('Faster R-CNN', 'Deformable DETR'),
    ('GFL', 'Faster R-CNN'),
]


def run(teacher, student, recipe, weights, digits_root, tmp_path):
    """Two iterations of the command line.

    Returns:
        The log of each, and the settings of the terms of the run.
    """
    annotations = digits_root / 'annotations' / 'train.json'
    for name, family, width in (('student', student, WIDTH), ('teacher', teacher, 2 * WIDTH)):
        config = run_config(
            model_config(family, width),
            annotations,
            digits_root / 'train',
            tmp_path / 'run',
            FAMILIES[family].masks,
        )
        config.log_processor = dict(window_size=1, by_epoch=False)  # losses are means of it
        config.dump(tmp_path / f'{name}.py')
    torch.manual_seed(1)
    model = build_model(Config.fromfile(tmp_path / 'teacher.py'))
    draw_weights(model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'teacher.pth')
    files = ('--teacher', tmp_path / 'teacher.py', '--teacher-checkpoint', tmp_path / 'teacher.pth')
    options = ('--recipe', recipe, '--work-dir', tmp_path / 'run', *files, *weights)
    train.main([str(part) for part in (tmp_path / 'student.py', *options)])
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert [step['step'] for step in steps] == [1, 2]
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', map_location='cpu', weights_only=False)
    plain = build_model(Config.fromfile(tmp_path / 'student.py'))
    plain.load_state_dict(saved['state_dict'], strict=True)
    config = Config.fromstring(saved['distiller']['cfg'], '.py')
    (hook,) = [hook for hook in config.custom_hooks if 'terms' in hook]
    return steps, hook.terms


@pytest.mark.parametrize(('teacher', 'student'), PAIRS)
def test_the_command_line_trains_boxes(teacher, student, digits_root, tmp_path):
    weight = ('--weight', 'boxes=1')  # none is found in two steps behind a closed gate
    steps, terms = run(teacher, student, 'boxes', weight, digits_root, tmp_path)
    (term,) = terms
    by_detections = teacher != student
    assert term['student'] == 'boxes'
    assert term.get('teacher', 'boxes') == ('detections' if by_detections else 'boxes')
    for step in steps:
        assert step['boxes_rows'] > 0 or by_detections  # of a new teacher, nothing may fit
        assert 0 <= step['boxes_closer'] <= 1
        assert (step['loss_boxes'] > 0) == (step['boxes_closer'] > 0)


@pytest.mark.parametrize('family', ['GFL', 'Faster R-CNN', 'Deformable DETR'])
def test_the_command_line_trains_boxes_beside_features_and_classes(family, digits_root, tmp_path):
    weights = ('--weight', 'gdd=1', '--weight', 'kd=1', '--weight', 'boxes=1')
    steps, _ = run(family, family, 'gdd+kd+boxes', weights, digits_root, tmp_path)
    for step in steps:
        assert step['boxes_rows'] > 0 and 0 <= step['boxes_closer'] <= 1
        assert step['loss_boxes'] >= 0 and step['loss_kd'] > 0 and step['loss_gdd'] > 0
        assert (step['loss_boxes'] > 0) == (step['boxes_closer'] > 0)
