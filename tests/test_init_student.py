"""init_student: which of the teacher's weights a student starts from."""

from __future__ import annotations

import pytest
import torch
from toys import toy_model

from mmkd_plugin.teacher import init_student
from mmkd_plugin.teacher.init_student import copy_teacher_weights, parse_parts


def snapshot(model) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    'text, parts',
    [
        ('neck', ['neck']),
        ('neck+head', ['neck', 'head']),
        (' backbone + neck ', ['backbone', 'neck']),
    ],
)
def test_parts_are_joined_by_plus(text, parts):
    assert parse_parts(text) == parts


@pytest.mark.parametrize(
    'text, words',
    [
        ('neck+haed', ["'neck+haed'", "'haed'", "nearest: 'head'"]),
        ('bbox_head', ["'bbox_head'", "'head'"]),
        ('', ["''", "'neck'"]),
        ('neck,head', ["'neck,head'", "'+'"]),
    ],
)
def test_unknown_parts_are_explained(text, words):
    with pytest.raises(ValueError) as error:
        parse_parts(text)
    assert all(word in str(error.value) for word in ['init_student', *words])


def test_copies_neck_and_head_where_shapes_fit_and_nothing_else():
    # a wider teacher: the inputs of the neck differ, its outputs and the head fit
    student, teacher = toy_model(0), toy_model(1, width=8)
    before, given = snapshot(student), snapshot(teacher)
    copied, skipped = copy_teacher_weights(student, teacher, 'neck+head')
    after = snapshot(student)

    assert set(copied) == {
        'neck.convs.0.bias',
        'neck.convs.1.bias',
        'bbox_head.cls.weight',
        'bbox_head.cls.bias',
        'bbox_head.unused.weight',
        'bbox_head.unused.bias',
    }
    assert set(skipped) == {'neck.convs.0.weight', 'neck.convs.1.weight'}
    for key, value in after.items():
        expected = given[key] if key in copied else before[key]
        assert torch.equal(value, expected), key
    # the values are copies: the student's training does not touch the teacher
    with torch.no_grad():
        student.bbox_head.cls.bias.add_(1)
    assert torch.equal(teacher.bbox_head.cls.bias, given['bbox_head.cls.bias'])


def test_the_backbone_with_its_buffers():
    student, teacher = toy_model(0), toy_model(1)
    teacher.backbone.stem[1].running_mean.fill_(3.0)
    copied, skipped = copy_teacher_weights(student, teacher, 'backbone')
    assert not skipped and all(key.startswith('backbone.') for key in copied)
    assert (student.backbone.stem[1].running_mean == 3).all()
    assert not torch.equal(student.neck.convs[0].weight, teacher.neck.convs[0].weight)
    assert student.backbone.stem[0].weight.requires_grad


def test_the_report_names_what_was_kept(monkeypatch):
    lines = []
    monkeypatch.setattr(init_student, 'print_log', lambda text, *args: lines.append(text))
    copy_teacher_weights(toy_model(0), toy_model(1, width=8), 'neck')
    (text,) = lines
    assert "init_student='neck'" in text and '2 entries copied' in text
    assert 'neck.convs.0.weight' in text and '2 kept' in text


def test_when_nothing_fits_it_is_an_error():
    with pytest.raises(ValueError) as error:
        copy_teacher_weights(toy_model(0, neck=6), toy_model(1, neck=5), 'neck')
    message = str(error.value)
    assert "init_student='neck'" in message and "'neck.convs.0.weight'" in message
    assert 'Leave init_student out' in message
