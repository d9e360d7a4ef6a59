"""Wrong distillation settings: each is refused with a sentence that names key, value and remedy.

And whatever is refused leaves the student as it was.
"""

from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from toys import toy_batch, toy_model

import mmkd_plugin
from mmkd_plugin import recipes

PKD = dict(type='PKDLoss')


def term(student='neck.convs.*', loss=PKD, **kwargs) -> dict:
    return dict(loss=loss, student=student, **kwargs)


def attach(*terms, student=None, teacher=None, **kwargs):
    kwargs.setdefault('probe_size', (16, 16))
    return mmkd_plugin.attach(
        student or toy_model(0), toy_model(1) if teacher is None else teacher, list(terms), **kwargs
    )


def refused(*terms, words, error=ValueError, student=None, **kwargs) -> str:
    """Attaching fails with a message that holds all `words`, and leaves no trace."""
    student = student or toy_model(0)
    names, attributes = set(student.state_dict()), set(vars(student))
    with pytest.raises(error) as caught:
        attach(*terms, student=student, **kwargs)
    message = str(caught.value)
    for word in words:
        assert word in message, f'{word!r} is not in: {message}'
    assert set(student.state_dict()) == names and set(vars(student)) == attributes
    assert not hasattr(student, 'distiller')
    for module in student.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    return message


class Net(BaseModel):
    """A student of any modules in a row; its loss is its output's mean."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.aside = nn.Conv2d(3, 3, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.body(inputs)
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def conv(channels: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(3, channels, 3, stride, 1)


# -- taps of the two sides ---------------------------------------------------------------------


def test_different_numbers_of_levels():
    refused(
        term('neck', teacher='neck.convs.0'),
        words=[
            "terms[0] ('pkd')",
            'student tap gives 2 levels',
            'neck level 0 (1, 6, 8, 8)',
            'teacher tap 1 (neck.convs.0 (1, 6, 8, 8))',
            'levels=[',
        ],
    )


def test_a_choice_of_levels_mends_it():
    distiller = attach(term(dict(path='neck', levels=[0]), teacher='neck.convs.0'))
    assert [row.student for row in distiller.plan()] == ['neck level 0']


def test_other_height_and_width_name_both_taps_and_shapes():
    refused(
        term('backbone.stage', teacher='backbone.stem', name='maps'),
        words=[
            "terms[0] ('maps')",
            "student 'backbone.stage' is (1, 8, 4, 4)",
            "teacher 'backbone.stem' is (1, 4, 8, 8)",
            "resize='bilinear'",
        ],
    )


def test_resize_mends_it():
    student = toy_model(0).train()
    attach(term('backbone.stage', teacher='backbone.stem', resize='bilinear'), student=student)
    losses = student(*toy_batch(), mode='loss')
    losses['loss_pkd'].backward()
    assert losses['loss_pkd'] > 0 and student.backbone.stem[0].weight.grad.abs().sum() > 0


def test_other_channels_get_a_connector_but_other_classes_do_not():
    distiller = attach(term(loss=dict(type='CWDLoss')), teacher=toy_model(1, neck=9))
    assert [row.connector_parameters for row in distiller.plan()] == [6 * 9 + 9] * 2
    refused(
        term('bbox_head.cls', loss=dict(type='KDLoss')),
        teacher=toy_model(1, classes=5),
        words=["terms[0] ('kd')", "'bbox_head.cls call 0'", '(1, 3, 8, 8)', '(1, 5, 8, 8)'],
    )


def test_a_feature_loss_on_vectors_names_the_tap():
    student, teacher = (Net(conv(4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2))
    refused(
        term('body.2', loss=dict(type='CWDLoss')),
        student=student,
        teacher=teacher,
        words=["terms[0] ('cwd')", "'body.2'", '(1, 4)', '(N, C, H, W)'],
    )


def test_maps_against_vectors():
    student, teacher = (Net(conv(4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2))
    refused(
        term('body.0', teacher='body.2', resize='bilinear'),
        student=student,
        teacher=teacher,
        words=["'body.0' is (1, 4, 8, 8)", "'body.2' is (1, 4)"],
    )


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_an_unknown_path_names_term_side_and_near_matches(side):
    taps = dict(student='neck.convs.0')
    taps[side] = 'neck.conv.0'
    refused(
        term(**taps),
        words=[
            f"terms[0] ('pkd').{side}",
            "'neck.conv.0'",
            "nearest: 'neck.convs.0'",
            'ToyDetector',
        ],
    )


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_a_module_that_the_model_never_calls(side):
    taps = dict(student='bbox_head.cls')
    taps[side] = 'bbox_head.unused'
    refused(
        term(**taps, loss=dict(type='KDLoss')),
        words=[f"{side} tap 'bbox_head.unused' captured nothing", 'never called'],
    )


def test_a_module_that_only_training_skips():
    """The probe saw it, the training step does not: the step says so."""

    class Sometimes(Net):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            if mode == 'loss':
                return dict(loss=self.aside(inputs).mean())
            return super().forward(inputs, data_samples, mode)

    student = Sometimes(conv(4)).train()
    attach(term('body.0'), student=student, teacher=Net(conv(4)))
    with pytest.raises(ValueError, match="student tap 'body.0' captured nothing"):
        student(torch.randn(2, 3, 16, 16), None, mode='loss')


def test_a_tap_in_a_roi_head_is_refused():
    class TwoStage(Net):
        def __init__(self):
            super().__init__(conv(4))
            self.roi_head = nn.Linear(2, 2)

    refused(
        term('roi_head'),
        student=TwoStage(),
        teacher=TwoStage(),
        words=["'roi_head'", 'RoI head', "student='cls_logits'"],
    )


def test_a_tap_inside_a_checkpointed_module():
    refused(
        term('backbone.stage.0'),
        checkpointed=['backbone.stage'],
        words=[
            "terms[0] ('pkd')",
            "'backbone.stage.0'",
            "inside 'backbone.stage'",
            "Tap 'backbone.stage' itself",
        ],
    )


# -- terms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(loss=dict(type='GDLoss')), ['terms[0].loss', "'GDLoss'", "'GDDLoss'"]),
        (
            dict(loss=dict(type='GDDLoss', temprature=2.0)),
            ['terms[0].loss', "'temprature'", "nearest: 'temperature'"],
        ),
        (dict(loss=dict(temperature=2.0)), ['terms[0].loss', "'type'"]),
        (dict(loss='GDDLoss'), ['terms[0].loss', "dict(type='GDDLoss')"]),
        (dict(wieght=2.0), ['terms[0]', "'wieght'", "nearest: 'weight'"]),
        (dict(weight=float('nan')), ["terms[0] ('pkd')", 'weight=nan', '0 or more']),
        (dict(weight=float('inf')), ["terms[0] ('pkd')", 'weight=inf']),
        (dict(weight=-1.0), ["terms[0] ('pkd')", 'weight=-1.0', '0 or more']),
        (dict(weight='2'), ["terms[0] ('pkd')", "weight='2'"]),
        (dict(begin=-3), ["terms[0] ('pkd')", 'begin=-3', '0 or more']),
        (dict(begin=10, end=5), ["terms[0] ('pkd')", 'end=5', 'begin=10']),
        (dict(warmup=-1), ["terms[0] ('pkd')", 'warmup=-1']),
        (dict(interval=0), ["terms[0] ('pkd')", 'interval=0']),
        (dict(resize='nearest'), ["terms[0] ('pkd')", "'nearest'", "'bilinear'"]),
        (dict(student=dict(path='neck', level=[0])), ["terms[0] ('pkd').student", "'levels'"]),
        (dict(student=dict(path='neck', levels=[2])), ["'neck'", 'levels=[2]', '2 of them']),
        (dict(student=dict(path='neck', source='inputs')), ["'inputs'", "'input'"]),
        (dict(student=[]), ["terms[0] ('pkd').student", '[]']),
    ],
)
def test_a_wrong_term(wrong, words):
    refused({**term(), **wrong}, words=words)


@pytest.mark.parametrize('key', ['loss', 'student'])
def test_a_term_without_loss_or_tap(key):
    config = term()
    del config[key]
    refused(config, words=['terms[0]', f'lacks {key!r}'])


def test_a_term_that_is_no_dict():
    refused('gdd', words=['terms[0]', "'gdd'", "'loss' and 'student'"])


def test_the_second_term_is_counted():
    refused(term(), term(name='b', weigth=1), words=['terms[1]', "'weigth'", "'weight'"])


def test_a_module_that_is_no_distillation_loss():
    refused(term(loss=dict(type='ReLU')), words=['terms[0].loss', "'ReLU'", 'distill'])


def test_no_terms():
    refused(words=['terms is empty'])


def test_equal_names():
    refused(term(), term('backbone.stage'), words=["Two terms are called 'pkd'", 'name='])
    refused(term(name='a'), term(loss=dict(type='CWDLoss'), name='a'), words=["'a'", 'loss_<name>'])
    assert len(attach(term(), term('backbone.stage', name='deep')).terms) == 2


@pytest.mark.parametrize('value', [-0.1, float('nan'), float('inf'), '1'])
def test_a_wrong_task_weight(value):
    refused(term(), task_weight=value, words=[f'task_weight={value!r}', '0 or more'])


# -- attaching ---------------------------------------------------------------------------------


def test_attached_twice():
    student = toy_model(0)
    first = attach(term(), student=student)
    with pytest.raises(ValueError, match='ToyDetector already has .*attached twice.*detach first'):
        attach(term(), student=student)
    assert student.distiller is first
    mmkd_plugin.detach(student)
    attach(term(), student=student)  # as the message says


def test_detached_twice():
    student = toy_model(0)
    attach(term(), student=student)
    mmkd_plugin.detach(student)
    with pytest.raises(ValueError, match='Nothing is attached to this ToyDetector'):
        mmkd_plugin.detach(student)


def test_a_student_that_is_its_own_teacher():
    """It would be frozen with the teacher, and train no more."""
    student = toy_model(0)
    refused(term(), student=student, teacher=student, words=['student', 'teacher', 'same', 'copy'])
    assert all(p.requires_grad for p in student.neck.parameters())


def test_a_student_without_losses():
    class Silent(Net):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.body(inputs)

    student = Silent(conv(4)).train()
    attach(term('body.0'), student=student, teacher=Net(conv(4)))
    with pytest.raises(TypeError, match="mode='loss' must return a dict of losses, got Tensor"):
        student(torch.randn(2, 3, 16, 16), None, mode='loss')


# -- recipes -----------------------------------------------------------------------------------


def test_an_unknown_recipe():
    with pytest.raises(ValueError) as caught:
        recipes.resolve('gddd', toy_model(0), toy_model(1))
    assert "'gddd'" in str(caught.value) and "nearest: 'gdd'" in str(caught.value)


def test_a_recipe_for_a_model_it_does_not_know():
    with pytest.raises(ValueError) as caught:
        recipes.resolve('gdd', Net(conv(4)), Net(conv(4)))
    assert 'No recipe fits Net' in str(caught.value) and 'body, aside' in str(caught.value)


@pytest.mark.parametrize(
    'arguments, word',
    [
        (dict(probe_size=256), 'probe_size=256'),
        (dict(probe_size=(16, 0)), 'probe_size=(16, 0)'),
        (dict(probe_size=(True, 16)), 'probe_size=(True, 16)'),
        (dict(seed=None), 'seed=None'),
    ],
)
def test_probe_size_and_seed(arguments, word):
    refused(term(), words=[word], **arguments)


def test_a_name_is_a_string():
    refused(term(name=5), words=['terms[0]', 'name=5', 'loss_<name>'])
