"""What a user's own view or loss, written for an earlier version, can still rely on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import toy_batch, toy_classifier

import mmkd_plugin
from mmkd_plugin.errors import placed
from mmkd_plugin.losses.kd import KDLoss
from mmkd_plugin.losses.logit_base import LogitLoss
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import TapError
from mmkd_plugin.terms import TermConfig
from mmkd_plugin.views import HeadSpec, Level, LogitView, PairContext, Predictions, register_view
from mmkd_plugin.views.registry import VIEWS

KD = dict(loss=dict(type='KDLoss'), student='cls_logits')


def step(*terms, teacher=None) -> dict:
    student = toy_classifier(0)
    mmkd_plugin.attach(
        student, teacher or toy_classifier(1, width=8), list(terms), probe_size=(16, 16)
    )
    images, samples = toy_batch(4)
    labels = dict(gt_label=torch.tensor([s.label for s in samples]))
    return student.train()(images, labels, mode='loss')


def test_predictions_field_by_field_are_those_of_a_spec():
    levels = [Level(torch.zeros(2, 3, 1, 5))]
    one = Predictions('head', 'roi', levels, 'softmax', 4, background=True)
    spec = HeadSpec('head', 'roi', 'softmax', 4, background=True)
    two = Predictions.of(spec, levels)
    assert one.spec == two.spec == spec and two.spec is spec and one.levels is two.levels
    for name in ('label', 'kind', 'activation', 'num_classes', 'background'):
        assert getattr(one, name) == getattr(two, name) == getattr(spec, name)


@pytest.fixture
def own_view():
    from mmkd_plugin.views.classifier import ClassifierLogits

    made = []

    def register(read):
        made.append(register_view('cls_logits')(type('Own', (ClassifierLogits,), dict(read=read))))
        return made[0]

    yield register
    VIEWS['cls_logits'].remove(made[0])


def test_a_teachers_view_is_told_of_the_pair_if_it_asks(own_view):
    from mmkd_plugin.views.classifier import ClassifierLogits

    seen = []

    def read(self, recorder, data_samples, student=None, pair=None):
        seen.append(pair)
        return ClassifierLogits.read(self, recorder, data_samples, student)

    own_view(read)
    teacher = mmkd_plugin.teacher.Teacher(toy_classifier(1, width=8), class_map=(2, -1, 0))
    step(KD, teacher=teacher)
    own, told = seen  # the student's view is asked for its own rows
    assert own is None and isinstance(told, PairContext)
    assert [c.tolist() for c in told.columns] == [[0, 2], [2, 0]]
    assert told.class_map.tolist() == [2, -1, 0] and told.copies == 1


def test_a_view_that_does_not_ask_is_not_told(own_view):
    from mmkd_plugin.views.classifier import ClassifierLogits

    def read(self, recorder, data_samples, student=None):
        return ClassifierLogits.read(self, recorder, data_samples, student)

    own_view(read)
    assert step(KD)['loss_kd'] > 0


def test_old_names_of_a_view():
    with pytest.warns(DeprecationWarning, match='teacher_only'):

        class Old(LogitView):
            follows = True

    assert Old.teacher_only is True and Old.follows is True
    assert LogitView.teacher_only is False


def test_a_loss_that_overrides_the_old_name_hears_of_the_head():
    heard = []
    with (
        pytest.warns(DeprecationWarning, match='set_activation'),
        pytest.warns(DeprecationWarning, match='compares_rows'),
    ):

        class Old(KDLoss):
            contrasts = True

            def adopt(self, activation, background=False):
                super().adopt(activation, background)
                heard.append((activation, self.activation, background, self.background))

    assert Old.compares_rows
    Old().set_activation('sigmoid', True)
    Old().adopt('sigmoid', True)
    assert heard == [('sigmoid', 'sigmoid', True, True)] * 2
    with pytest.raises(ValueError, match='contradicts the head'):
        Old(use_sigmoid=False).set_activation('sigmoid')
    loss = KDLoss()
    loss.adopt('sigmoid')
    assert loss.sigmoid


@MODELS.register_module()
class DrawsLoss(LogitLoss):
    """Draws weights when it is built, which no loss of ours does."""

    built = 0

    def __init__(self):
        super().__init__()
        type(self).built += 1
        self.layer = nn.Linear(3, 3)

    def rows(self, student, teacher):
        return (self.layer(student) - teacher).square().sum(1)


def test_levels_have_losses_of_their_own():
    config = TermConfig.from_dict(KD, 'terms[0]')
    one, two = config.new_loss(), config.new_loss()
    assert one is not two and one is not config.built and repr(one) == repr(two)
    config = TermConfig.from_dict(dict(KD, loss=dict(type='DrawsLoss')), 'terms[0]')
    one, two = config.new_loss(), config.new_loss()
    assert not torch.equal(one.layer.weight, two.layer.weight)


def test_a_place_is_named_once():
    for text in ('sizes differ', "terms[0] ('kd').teacher: sizes differ"):
        with pytest.raises(TapError) as caught, placed("terms[0] ('kd')"):
            raise TapError(text)
        assert str(caught.value).count("terms[0] ('kd')") == 1
        assert str(caught.value).endswith(': sizes differ')


def test_an_error_of_a_step_names_the_term():
    student, teacher = toy_classifier(0), toy_classifier(1, width=8)
    mmkd_plugin.attach(student, teacher, [KD], probe_size=(16, 16))
    student.requires_grad_(False)
    images, samples = toy_batch(4)
    with pytest.raises(TapError, match=r"^terms\[0\] \('kd'\): the student tensor at .* no gradi"):
        student(images, dict(gt_label=torch.tensor([s.label for s in samples])), mode='loss')
