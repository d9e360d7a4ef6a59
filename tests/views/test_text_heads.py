"""Detectors whose heads read text: refused by name before training, features still serve."""

from __future__ import annotations

import pytest
from region_batches import detector, images, sample
from torch import nn

import mmkd_plugin
from mmkd_plugin.recipes import resolve
from mmkd_plugin.taps import TapError
from mmkd_plugin.views import fitting, make_view

KD = dict(loss=dict(type='KDLoss'), student='cls_logits')


def reads_text(model):
    """What GLIP makes of ATSS: a language model, and a head that wants its words."""
    base = type(model.bbox_head)

    class VLFusionHead(base):
        def forward(self, visual_feats, language_feats):
            return base.forward(self, visual_feats)

    model.bbox_head.__class__ = VLFusionHead
    model.language_model = nn.Linear(2, 2)
    return model


@pytest.mark.parametrize('view', ['cls_logits', 'detections'])
def test_glip_is_refused_by_name(view):
    model = reads_text(detector('ATSS'))
    assert fitting(model, student=False) == []
    with pytest.raises(TapError, match="ATSS reads text.*student='neck'"):
        make_view(view, model)


def test_a_query_detector_with_words_in_its_transformer_is_refused():
    model = detector('Deformable DETR')
    base = type(model)

    class GroundingDETR(base):
        def forward_transformer(self, img_feats, text_dict, batch_data_samples=None):
            return base.forward_transformer(self, img_feats, batch_data_samples)

    model.__class__ = GroundingDETR
    with pytest.raises(TapError, match="no view 'cls_logits' fits GroundingDETR"):
        make_view('cls_logits', model)
    model.language_model = nn.Linear(2, 2)
    with pytest.raises(TapError, match="GroundingDETR reads text.*student='neck'"):
        make_view('cls_logits', model)


def bare(cls, **parts):
    """A module of a class without its language model, which would have to be downloaded."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def test_the_real_ones_are_known_by_what_their_heads_read():
    from mmdet.models.dense_heads import ATSSVLFusionHead, GroundingDINOHead
    from mmdet.models.detectors import GLIP, GroundingDINO

    told = detector('ATSS').bbox_head
    names = ('loss_cls', 'cls_out_channels', 'prior_generator', 'num_classes')
    glip = bare(ATSSVLFusionHead, **{name: getattr(told, name) for name in names})
    dino = bare(GroundingDINOHead, loss_cls=told.loss_cls)
    for model in (bare(GLIP, bbox_head=glip), bare(GroundingDINO, bbox_head=dino)):
        assert fitting(model, student=False) == []
        model.language_model = nn.Linear(2, 2)
        with pytest.raises(TapError, match=f"{type(model).__name__} reads text.*student='neck'"):
            make_view('cls_logits', model)


def test_terms_and_recipes_say_so_and_features_serve():
    student, teacher = detector('ATSS'), reads_text(detector('ATSS', seed=1))
    with pytest.raises(TapError, match='teacher: ATSS reads text'):
        mmkd_plugin.attach(student, teacher, [KD])
    with pytest.raises(TapError, match='teacher: ATSS reads text'):
        resolve('kd', student, teacher)
    head = dict(loss=dict(type='PKDLoss'), student='bbox_head.atss_cls')
    with pytest.raises(TapError, match='teacher tap: ATSS reads text.*bbox_head cannot run'):
        mmkd_plugin.attach(student, teacher, [head])
    mmkd_plugin.attach(student, teacher, resolve('gdd', student, teacher)['terms'])
    samples = [sample()]
    assert student.train()(images(samples), samples, mode='loss')['loss_gdd'] > 0
