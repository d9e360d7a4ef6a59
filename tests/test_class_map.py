"""Teacher and student of different classes: which columns belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS
from toys import TERM, ToyImages, hook_config, runner_config, toy_batch, toy_classifier, train

import mmkd_plugin
from mmkd_plugin import class_map as class_map_module
from mmkd_plugin import distiller as distiller_module
from mmkd_plugin import functional as F
from mmkd_plugin.checkpoints.fit import classes_of
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
        (dict(classes=np.array('thing')), ('thing',)),
        (dict(classes={'cat', 'dog'}), None),  # in another order in each process
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
    said = []
    monkeypatch.setattr(class_map_module, 'print_log', lambda message, *args: said.append(message))
    assert dataset_classes(wrap(images(STUDENT[:2]))) == expected
    assert bool(expected) != any("label 0 ('cat' and 'dog')" in message for message in said)


@pytest.fixture
def other_classes(tmp_path):
    """The `teacher` of a config whose file was made with classes that the student has not."""
    path, classes = tmp_path / 'teacher.pth', ('dog', 'horse', 'cat')
    weights = toy_classifier(1, width=8).state_dict()
    torch.save(dict(meta=dict(dataset_meta=dict(classes=classes)), state_dict=weights), path)
    return dict(config=dict(type='ToyClassifier', width=8), checkpoint=str(path))


def test_features_need_no_classes(tmp_path, other_classes, monkeypatch):
    said = []
    monkeypatch.setattr(distiller_module, 'print_log', lambda message, *args: said.append(message))
    term = dict(TERM, student='backbone.stage')
    hook = hook_config(term, dict(term, student='backbone.stem', name='low'), teacher=other_classes)
    train(runner_config(tmp_path, hook, model=dict(type='ToyClassifier')))
    assert len(said) == 1 and "index 0 (teacher 'dog', student 'dark')" in said[0]
    assert said[0].endswith('The terms compare features, which need no classes.')


@pytest.mark.parametrize(
    'term', [KD, dict(KD, student='head.fc'), dict(KD, begin=2), dict(KD, weight=0)]
)
def test_logits_do(tmp_path, other_classes, term):
    features = dict(TERM, student='backbone.stage')
    config = runner_config(
        tmp_path,
        hook_config(features, term, teacher=other_classes),
        model=dict(type='ToyClassifier'),
    )
    with pytest.raises(ValueError, match=r"terms\[1\] \('kd'\): .*allow_class_mismatch=True"):
        train(config)
    config.custom_hooks[0].teacher.allow_class_mismatch = True
    train(config)


def test_data_sets_of_different_classes_train(tmp_path):
    parts = [dict(type='ToyImages', length=4), dict(type='ToyPair')]
    config = runner_config(tmp_path, hook_config())
    config.train_dataloader.dataset = dict(type='ToyParts', datasets=parts)
    assert train(config).iter == 4


@DATASETS.register_module()
class ToyPair(ToyImages):
    """Its images have but the first two of the classes."""

    metainfo = dict(classes=np.array(ToyImages.metainfo['classes'][:2]))

    def __init__(self):
        super().__init__(2)


@DATASETS.register_module()
class ToyParts(torch.utils.data.ConcatDataset):
    """As MMDetection's `ConcatDataset`: a list of metainfos where they differ."""

    def __init__(self, datasets):
        super().__init__([DATASETS.build(dataset) for dataset in datasets])
        self.metainfo = [dataset.metainfo for dataset in self.datasets]


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
