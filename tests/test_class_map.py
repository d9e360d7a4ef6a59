"""Teacher and student of different classes: which columns belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from toys import toy_batch, toy_classifier

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.checkpoint import classes_of
from mmkd_plugin.class_map import class_names, dataset_classes, resolve_class_map
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher import Teacher

STUDENT, TEACHER = ('cat', 'dog', 'cow'), ('dog', 'horse', 'cat', 'sheep')
KD = dict(loss=dict(type='KDLoss', temperature=2.0), student='cls_logits')


@pytest.mark.parametrize(
    'config, expected',
    [
        ('names', (2, 0, -1)),
        (dict(cat='cat', cow='sheep'), (2, -1, 3)),
        ([2, None, 3], (2, -1, 3)),
    ],
)
def test_forms(config, expected):
    assert resolve_class_map(config, STUDENT, TEACHER) == expected


@pytest.mark.parametrize(
    'config, student, teacher, words',
    [
        (dict(cat='cats'), STUDENT, TEACHER, ["'cats'", 'teacher does not have', "'cat'"]),
        (dict(cut='cat'), STUDENT, TEACHER, ["'cut'", 'student does not have', "'cat'"]),
        ('names', STUDENT, None, ["'names'", 'its checkpoint names no classes', 'Give a list']),
        ('names', None, TEACHER, ['its data set names no classes']),
        ('names', ('a',), ('b',), ['share no class name']),
        ('name', STUDENT, TEACHER, ["'name'", "must be 'names'"]),
        ([0, 'dog', 1], STUDENT, TEACHER, ['index of the teacher']),
    ],
)
def test_what_cannot_be_resolved_is_explained(config, student, teacher, words):
    with pytest.raises(ValueError) as caught:
        resolve_class_map(config, student, teacher)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    'meta, expected',
    [
        (dict(classes=['cat', 'dog']), ('cat', 'dog')),
        (dict(CLASSES=('cat', 'dog')), ('cat', 'dog')),
        (dict(classes=('thing')), ('thing',)),
        (dict(classes=np.array(['cat', 'dog'])), ('cat', 'dog')),
        ([dict(classes=STUDENT), dict(classes=STUDENT[:2]), dict(palette=[])], STUDENT),
        ([dict(classes=STUDENT[:2]), [dict(classes='cat'), dict(classes=STUDENT)]], STUDENT),
        ([dict(classes=STUDENT), dict(classes=STUDENT[1:])], None),
        (dict(classes=()), None),
        (dict(classes=3), None),
        ([], None),
        (None, None),
    ],
)
def test_all_forms_of_class_names(meta, expected):
    assert class_names(meta) == expected
    assert classes_of(dict(meta=dict(dataset_meta=meta))) == expected


class Images(BaseDataset):
    def load_data_list(self):
        return [dict(img_path='')] * 4


def images(classes):
    return Images(metainfo=dict(classes=classes))


@pytest.mark.parametrize(
    'wrap, expected',
    [
        (lambda two: RepeatDataset(two, 2), STUDENT[:2]),
        (lambda two: torch.utils.data.Subset(two, [0, 1]), STUDENT[:2]),
        (lambda two: ConcatDataset([two, images(STUDENT)], ignore_keys='classes'), STUDENT),
        (lambda two: torch.utils.data.ConcatDataset([two, images(TEACHER)]), None),
    ],
)
def test_classes_of_wrapped_data_sets(wrap, expected, monkeypatch):
    told = []
    monkeypatch.setattr('mmkd_plugin.class_map.print_log', lambda text, *args: told.append(text))
    assert dataset_classes(wrap(images(STUDENT[:2]))) == expected
    assert expected or "label 0 ('cat' and 'dog')" in told[0]


def attached(class_map, term=KD):
    student, teacher = toy_classifier(0), toy_classifier(1, classes=4)
    handle = Teacher(teacher, class_map=class_map)
    mmkd_plugin.attach(student, handle, [term], probe_size=(16, 16))
    return student.train(), teacher


def batch():
    images, samples = toy_batch(4)
    return images, dict(gt_label=torch.tensor([s.label for s in samples]))


def test_only_shared_classes_are_compared():
    student, teacher = attached((2, 0, -1))
    images, samples = batch()
    losses = student(images, samples, mode='loss')
    own, theirs = toy_classifier(0).train()(images)[:, [0, 1]], teacher(images)[:, [2, 0]]
    torch.testing.assert_close(losses['loss_kd'], F.kl_divergence(own, theirs, 2.0))


def test_rows_whose_label_the_teacher_does_not_know_count_nothing():
    term = dict(loss=dict(type='DKDLoss', temperature=2.0), student='cls_logits')
    student, teacher = attached((2, 0, -1), term)
    images, samples = batch()  # labels 0, 1, 2, 0
    losses = student(images, samples, mode='loss')
    rows = torch.tensor([0, 1, 3])
    own = toy_classifier(0).train()(images)[rows][:, [0, 1]]
    theirs = teacher(images)[rows][:, [2, 0]]
    expected = F.dkd(own, theirs, samples['gt_label'][rows], 2.0)
    torch.testing.assert_close(losses['loss_dkd'], expected)


@pytest.mark.parametrize(
    'class_map, word',
    [((0, 1), 'names 2 classes'), ((0, 1, 4), 'class 4'), ((-1, -1, -1), 'shares no class')],
)
def test_maps_that_do_not_fit_the_heads(class_map, word):
    with pytest.raises(TapError, match=word):
        attached(class_map)
