"""The view cls_logits: what a classifier's last layer says, with labels and features on demand."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as nnf
from toys import toy_batch, toy_classifier, toy_model

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.losses import DistillLoss, LogitLoss
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import TapError, parse_tap
from mmkd_plugin.views import (
    HeadSpec,
    Level,
    LogitView,
    Predictions,
    make_view,
    register_view,
    views,
)
from mmkd_plugin.views.registry import VIEWS

KD = dict(loss=dict(type='KDLoss', temperature=4.0), student='cls_logits', weight=0.9)


class SpyLoss(LogitLoss):
    """Keeps what it was given, reports two numbers and trains a layer of its own."""

    needs = ('labels', 'features')

    def connect(self, student_shape, teacher_shape, features_shape=None, priors=1):
        self.own = nn.Linear(features_shape[1], student_shape[1])

    def rows(self, student, teacher, labels, features, weights=None):
        self.seen = dict(student=student, teacher=teacher, labels=labels, features=features)
        self.report = dict(count=torch.tensor(float(len(labels))))
        self.auxiliary = dict(own=nnf.cross_entropy(self.own(features.detach()), labels))
        return (student - teacher).square().mean(1)


def batch(n=4):
    images, samples = toy_batch(n)
    return images, dict(gt_label=torch.tensor([s.label for s in samples]))


def attached(*terms, **kwargs):
    student, teacher = toy_classifier(0), toy_classifier(1, width=8)
    distiller = mmkd_plugin.attach(student, teacher, list(terms), probe_size=(16, 16), **kwargs)
    return student.train(), teacher, distiller


def test_kd_on_the_view_is_the_formula_on_the_logits():
    student, teacher, _ = attached(KD, task_weight=0.1)
    images, samples = batch()
    plain = toy_classifier(0).train()
    logits = plain(images, None)
    expected = 0.9 * F.kl_divergence(logits, teacher(images), 4.0)
    losses = student(images, samples, mode='loss')
    torch.testing.assert_close(losses['loss_kd'], expected)
    task = nnf.cross_entropy(logits, samples['gt_label'])
    torch.testing.assert_close(losses['loss_cls'], 0.1 * task)


def test_labels_and_features_arrive_with_reports_and_auxiliary_losses():
    term = dict(loss=dict(type=SpyLoss), student='cls_logits', name='spy', weight=0.5)
    student, teacher, distiller = attached(term)
    images, samples = batch()
    losses = student(images, samples, mode='loss')
    (loss,) = distiller.terms[0].losses
    torch.testing.assert_close(loss.seen['labels'], samples['gt_label'])
    torch.testing.assert_close(student.head.fc(loss.seen['features']), loss.seen['student'])
    torch.testing.assert_close(loss.seen['teacher'], teacher(images))
    assert losses['spy_count'] == 4 and set(losses) == {
        'loss_cls', 'loss_spy', 'loss_spy_own', 'spy_count'
    }  # fmt: skip
    own = nnf.cross_entropy(loss.own(loss.seen['features']), samples['gt_label'])
    torch.testing.assert_close(losses['loss_spy_own'], own)  # not times 0.5
    total, logged = student.parse_losses(losses)
    parts = losses['loss_cls'] + losses['loss_spy'] + losses['loss_spy_own']
    torch.testing.assert_close(total, parts)
    assert {'spy_count', 'loss_spy'} <= set(logged)
    assert loss.report == {} and loss.auxiliary == {}, 'they would keep the graph alive'
    losses['loss_spy_own'].backward()
    assert loss.own.weight.grad is not None and student.head.fc.weight.grad is None


def test_one_sample_per_image_as_in_mmpretrain():
    term = dict(loss=dict(type=SpyLoss), student='cls_logits', name='spy')
    student, _, distiller = attached(term)
    images, samples = toy_batch(4)
    for sample in samples:
        sample.gt_label = torch.tensor([sample.label])
    student(images, samples, mode='loss')
    assert distiller.terms[0].losses[0].seen['labels'].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    'samples, message',
    [
        (dict(gt_lable=torch.zeros(4).long()), "no 'gt_label' .*nearest: 'gt_lable'"),
        (dict(gt_label=torch.zeros(4).long(), mixed_label=torch.zeros(4).long()), 'mixed'),
        ([BaseDataElement() for _ in range(4)], "a BaseDataElement of the batch has no 'gt_label'"),
        ([BaseDataElement(gt_score=torch.tensor([0.7, 0.3, 0])) for _ in range(4)], 'gt_score'),
    ],
)
def test_labels_that_are_missing_or_mixed_are_explained(samples, message):
    term = dict(loss=dict(type=SpyLoss), student='cls_logits', name='spy')
    student, _, _ = attached(term)
    images, good = batch()
    student.forward = lambda inputs, data_samples=None, mode='tensor': toy_forward(student, inputs)
    with pytest.raises(ValueError, match=message):
        student(images, samples, mode='loss')
    student(images, good, mode='loss')  # and the student is usable afterwards


def test_a_step_without_samples_is_explained():
    term = dict(loss=dict(type='DKDLoss'), student='cls_logits')
    student, _, _ = attached(term)
    images, _ = batch()
    student.forward = lambda inputs, data_samples=None, mode='tensor': toy_forward(student, inputs)
    with pytest.raises(
        ValueError, match='student: the loss needs labels, but this step brought none'
    ):
        student(images, mode='loss')


def test_a_teacher_of_another_project_needs_no_data_preprocessor():
    student, teacher = toy_classifier(0), toy_classifier(1)
    del teacher.data_preprocessor
    mmkd_plugin.attach(student, teacher, [KD], probe_size=(16, 16))
    images, samples = batch()
    assert student.train()(images, samples, mode='loss')['loss_kd'] > 0


def toy_forward(student, inputs):
    return dict(loss_cls=student.head(student.extract_feat(inputs)).sum())


def test_a_module_path_cannot_supply_labels():
    with pytest.raises(TapError, match='is a module path.*labels and features.*cls_logits'):
        attached(dict(loss=dict(type=SpyLoss), student='head.fc'))


def test_a_module_path_is_enough_for_kd():
    term = dict(KD, student='head.fc')
    student, _, _ = attached(term)
    other, _, _ = attached(KD)
    images, samples = batch()
    assert (
        student(images, samples, mode='loss')['loss_kd']
        == (other(images, samples, mode='loss')['loss_kd'])
    )


def test_other_class_counts_are_refused_before_training():
    student, teacher = toy_classifier(0), toy_classifier(1, classes=4)
    with pytest.raises(TapError, match=r'has 3 classes and the teacher .* 4.*class_map'):
        mmkd_plugin.attach(student, teacher, [KD], probe_size=(16, 16))


def test_a_model_without_such_a_view_is_told_what_to_do():
    with pytest.raises(TapError, match="no view 'cls_logits' fits ToyDetector.*ClassifierLogits"):
        mmkd_plugin.attach(toy_model(0), toy_model(1), [KD], probe_size=(16, 16))


def test_a_head_without_a_fitting_layer_lists_what_there_is():
    model = toy_classifier(0)
    model.head.num_classes = 7
    with pytest.raises(TapError, match=r'num_classes=7 .*head.hidden \(5\), head.fc \(3\)'):
        make_view('cls_logits', model)


def test_view_dicts_and_unknown_names():
    model = toy_classifier(0)
    assert make_view(dict(view='cls_logits'), model).points == make_view('cls_logits', model).points
    with pytest.raises(TapError, match="no view 'cls_logit'; nearest: 'cls_logits'"):
        make_view(dict(view='cls_logit'), model)
    with pytest.raises(TapError, match="no module.*matches 'cls_logit'.*the view 'cls_logits'"):
        make_view('cls_logit', model)


def test_teacher_gets_its_own_view_of_the_batch():
    student, teacher, distiller = attached(KD)
    images, samples = batch()
    view = images.flip(3) + 1
    losses = student(images, dict(samples, teacher_inputs=view), mode='loss')
    logits = toy_classifier(0).train()(images)
    torch.testing.assert_close(losses['loss_kd'], 0.9 * F.kl_divergence(logits, teacher(view), 4.0))
    assert distiller._samples is None, 'the batch is not kept'


def test_complement_leaves_the_rest_to_the_task():
    ramp = dict(KD, weight=0.8, begin=1, warmup=4, by_epoch=True)
    student, _, distiller = attached(ramp, task_weight='complement')
    images, samples = batch()
    plain = nnf.cross_entropy(toy_classifier(0).train()(images), samples['gt_label'])
    for epoch, share in enumerate([1.0, 0.8, 0.6, 0.4, 0.2, 0.2]):
        distiller.set_progress(epoch, epoch)
        loss = student(images, samples, mode='loss')['loss_cls']
        torch.testing.assert_close(loss, share * plain)
    with pytest.raises(ValueError, match='complement.*1 - 1.3'):
        attached(KD, dict(KD, name='b', weight=0.4), task_weight='complement')


def test_task_losses_that_are_not_learnt_from_are_still_logged():
    student, _, _ = attached(KD, task_weight=0)
    images, samples = batch()
    losses = student(images, samples, mode='loss')
    assert losses['loss_cls'] == 0 and losses['task_cls'] > 0
    assert not losses['task_cls'].requires_grad
    total, _ = student.parse_losses(losses)
    assert total == losses['loss_kd']


def test_a_new_kind_of_model_plugs_in_by_a_class_of_its_own():
    @register_view('cls_logits')
    class SumOfMaps(LogitView):
        def __init__(self, model, needs, where):
            self.points = parse_tap('bbox_head.cls', model, where)

        @classmethod
        def fits(cls, model):
            return hasattr(model, 'bbox_head')

        def specs(self, model):
            return [HeadSpec('sum', 'image', 'softmax', model.bbox_head.cls.out_channels)]

        def read(self, recorder, data_samples, student=None):
            rows = recorder.read(self.points)[0].tensor.mean((2, 3))
            levels = [Level(rows[:, None, None])]
            return [Predictions('sum', 'image', levels, 'softmax', rows.shape[1])]

    try:
        student, teacher = toy_model(0), toy_model(1)
        mmkd_plugin.attach(student, teacher, [KD], probe_size=(16, 16))
        images, samples = toy_batch(4)
        assert student.train()(images, samples, mode='loss')['loss_kd'] > 0
    finally:
        VIEWS['cls_logits'].remove(SumOfMaps)
    assert SumOfMaps not in views('cls_logits')


def test_losses_declare_what_they_need():
    for name in MODELS.module_dict:
        cls = MODELS.get(name)
        if isinstance(cls, type) and issubclass(cls, DistillLoss):
            known = {'labels', 'features', 'images', 'priors', 'truth', 'scores'}
            assert set(cls.needs) <= known
