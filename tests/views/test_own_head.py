"""A head of one's own: the example in the docs plugs in, before the views that come with us."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectors import FAMILIES, skip_if_too_large
from mmdet.registry import MODELS
from region_batches import detector, images, sample

import mmkd_plugin
from mmkd_plugin import recipes
from mmkd_plugin.taps import TapError
from mmkd_plugin.views import view_names, views
from mmkd_plugin.views.dense import DenseLogits
from mmkd_plugin.views.registry import VIEWS

DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'detection.md'
KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits')


@pytest.fixture
def example():
    """The code of the docs, run; and forgotten again."""
    section = DOCS.read_text().split('\n## A head of your own\n')[1]
    names: dict = {}
    exec(re.search(r'```python\n(.*?)```', section, re.S)[1], names)
    yield names
    VIEWS['cls_logits'].remove(names['OneMapLogits'])
    del MODELS.module_dict['OneMapHead']


def models(seed: int, width: int = 16) -> torch.nn.Module:
    def edit(config):
        config.bbox_head.type = 'OneMapHead'

    return detector('GFL', width, seed, edit=edit)


def test_it_is_asked_before_the_views_that_come_with_us(example):
    student, teacher = models(0), models(1, 32)
    assert DenseLogits.fits(student)
    assert views('cls_logits')[0] is example['OneMapLogits']
    rows = [dict(KD), dict(KD, name='top', select='teacher_topk')]
    mmkd_plugin.attach(student, teacher, rows)
    batch = [sample(), sample()]
    losses = student(images(batch), batch, mode='loss')
    assert losses['loss_kd'] > 0 and losses['loss_top'] > 0
    losses['loss_kd'].backward()
    assert student.bbox_head.gfl_cls.weight.grad.abs().sum() > 0


def test_a_student_like_its_teacher_has_nothing_to_learn(example):
    student = models(0)
    mmkd_plugin.attach(student, models(0), [KD])
    batch = [sample()]
    loss = student(images(batch), batch, mode='loss')['loss_kd']
    torch.testing.assert_close(loss, torch.zeros(()), atol=1e-6, rtol=0)


def test_what_it_does_not_tell_is_asked_for(example):
    """Features before training; labels, which only a step can show, in the first one."""
    student, teacher = models(0), models(1, 32)
    assert recipes.resolve('kd', student, teacher, {})['terms'][0]['student'] == 'cls_logits'
    for attempt in (
        lambda: recipes.resolve('ipwd', student, teacher, {}),
        lambda: mmkd_plugin.attach(student, teacher, [dict(KD, loss=dict(type='IPWDLoss'))]),
    ):
        with pytest.raises(TapError, match='OneMapLogits does not give.*HeadSpec.feature_dim'):
            attempt()
    mmkd_plugin.attach(student, teacher, [dict(KD, loss=dict(type='LoCaLoss'))])
    batch = [sample()]
    with pytest.raises(ValueError, match='LoCaLoss needs labels.*Level.labels'):
        student(images(batch), batch, mode='loss')


@pytest.mark.parametrize('family', FAMILIES)
def test_of_ours_never_two_fit(family):
    """Which of them was registered last must not matter."""
    skip_if_too_large(family)
    model = detector(family)
    for name in view_names():
        assert sum(view.fits(model) for view in views(name)) <= 1, name
