"""A dense teacher's rows in the order of a dense student's, and terms between the two."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_models import (
    CLASSES,
    DENSE,
    batch,
    build,
    follow,
    read,
    sample,
    student,
    teacher,
)
from detectors import IMAGE, model_config
from torch import nn
from waiting import Waits

import mmkd_plugin
from mmkd_plugin.taps import TapError
from mmkd_plugin.views import Boxes, Predictions

SMALL = (64, 80)
CROWD = (20.0, 24.0, 60.0, 70.0)
SELECT = ('all', 'positive', 'score_weighted', dict(by='teacher_topk', k=20))


def term(select='all', **kwargs):
    return dict(
        loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', select=select, **kwargs
    )


def attached(own: nn.Module, other: nn.Module, *terms: dict) -> nn.Module:
    own = copy.deepcopy(own)
    mmkd_plugin.attach(own, other, list(terms) or [term()], probe_size=(IMAGE, IMAGE))
    return own.train()


def with_still_norms(model: nn.Module) -> nn.Module:
    """Batch norms that use their saved statistics, as the teacher's do."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


@pytest.mark.parametrize('family', DENSE)
def test_wider_teacher_teaches(family):
    model = attached(student(family), teacher(family))
    losses = model(**batch(model), mode='loss')
    assert losses['loss_kd'] > 0 and losses['loss_kd'].isfinite()
    losses['loss_kd'].backward()
    grads = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in grads) and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize('family', DENSE)
def test_identical_teacher_leaves_nothing_to_learn(family):
    own = student(family)
    twin = copy.deepcopy(own)
    model = with_still_norms(attached(own, twin))
    losses = model(**batch(model), mode='loss')
    assert losses['loss_kd'].abs() < 1e-6
    with torch.no_grad():
        for name, parameter in model.bbox_head.named_parameters():
            if 'cls' in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    assert model(**batch(model), mode='loss')['loss_kd'] > 1e-6


@pytest.mark.parametrize('select', SELECT, ids=str)
@pytest.mark.parametrize('family', DENSE)
def test_padding_and_crowds_change_nothing(family, select):
    other = teacher(family)
    model = attached(student(family), other, term(select))
    images = batch(model, sample(crowds=[CROWD]), sample(SMALL, [(5, 5, 60, 50)]))
    shift = dict(offset=0.5 if family == 'FCOS' else 0.0, valid=False)

    def change(head, args, outputs):
        for maps, stride in zip(outputs[0], (8, 16, 32, 64, 128)):
            places = (torch.arange(maps.shape[-1]) + shift['offset']) * stride
            x, y = places[None, :], places[:, None]
            crowd = (x >= CROWD[0]) & (x <= CROWD[2]) & (y >= CROWD[1]) & (y <= CROWD[3])
            padding = (x >= SMALL[1]) | (y >= SMALL[0])
            for image, outside in zip(maps, (crowd, padding)):
                image[:, outside ^ shift['valid']] += 3.0

    plain = model(**copy.deepcopy(images), mode='loss')['loss_kd']
    hook = other.bbox_head.register_forward_hook(change, prepend=True)
    changed = model(**copy.deepcopy(images), mode='loss')['loss_kd']
    shift['valid'] = True
    elsewhere = model(**copy.deepcopy(images), mode='loss')['loss_kd']
    hook.remove()
    assert plain > 0
    torch.testing.assert_close(changed, plain, rtol=1e-5, atol=1e-7)
    assert not torch.isclose(elsewhere, plain, rtol=1e-3)


@pytest.mark.parametrize('family', DENSE)
def test_images_without_anything_to_learn_from(family):
    """Only crowds: no row counts; no objects: no positive one."""
    crowds = sample(boxes=(), crowds=[(0, 0, IMAGE, IMAGE)])
    terms = [term(name='all'), term('positive', name='positive')]
    model = attached(student(family), teacher(family), *terms)
    losses = model(**batch(model, crowds, crowds), mode='loss')
    assert losses['loss_all'] == 0 and losses['loss_positive'] == 0
    (losses['loss_all'] + losses['loss_positive']).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    losses = model(**batch(model, sample(boxes=()), sample(boxes=())), mode='loss')
    assert losses['loss_all'] > 0 and losses['loss_positive'] == 0


@pytest.mark.parametrize('family', DENSE)
def test_reading_never_waits_for_the_device(family):
    model, other = student(family), teacher(family)
    images = batch(model, sample(crowds=[CROWD]), sample(SMALL))
    own, view, recorder = read(model, images)  # rows are compared with the maps here, once
    _, their_view, theirs = follow(other, images, own)
    with Waits() as waits:
        (again,) = view.read(recorder, images['data_samples'])
        their_view.read(theirs, images['data_samples'], student=[again])
        [level.boxes.decode() for level in again.levels]
    assert isinstance(again, Predictions) and waits.seen == []


def test_bfloat16():
    model = attached(student('GFL'), teacher('GFL'))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(**batch(model), mode='loss')
    assert losses['loss_kd'].isfinite() and losses['loss_kd'] > 0


def test_one_head_teaches_another():
    """GFL to FCOS: positions of equal index belong together."""
    model, other = student('FCOS'), teacher('GFL')
    images = batch(model)
    own, _, _ = read(model, images)
    theirs, view, recorder = follow(other, images, own)
    for level, maps in zip(theirs.levels, recorder.raw(view.output)[0][0], strict=True):
        assert torch.equal(level.logits[..., 0, :], maps.flatten(2).transpose(1, 2))
    losses = attached(student('FCOS'), teacher('GFL'))(**images, mode='loss')
    assert losses['loss_kd'].isfinite() and losses['loss_kd'] > 0


def test_levels_are_matched_by_stride():
    model, other = student('RTMDet'), teacher('GFL')
    images = batch(model)
    own, _, _ = read(model, images)
    theirs, view, recorder = follow(other, images, own)
    maps = recorder.raw(view.output)[0][0]
    assert len(maps) == 5 and [level.stride for level in theirs.levels] == [8, 16, 32]
    for level, m in zip(theirs.levels, maps):
        assert level.logits.data_ptr() == m.data_ptr()
    losses = attached(student('RTMDet'), teacher('GFL'))(**images, mode='loss')
    assert losses['loss_kd'] > 0


def test_lacking_strides_are_refused():
    with pytest.raises(TapError) as error:
        attached(student('GFL'), teacher('RTMDet'))
    for part in ('[8, 16, 32, 64, 128]', '[8, 16, 32]', 'none of stride 64, 128', "'detections'"):
        assert part in str(error.value)


def test_several_anchors_teach_one_by_their_best():
    model, other = student('FCOS'), teacher('RetinaNet')
    images = batch(model)
    own, _, _ = read(model, images)
    theirs, view, recorder = follow(other, images, own)
    outputs = recorder.raw(view.output)[0]
    for i, (level, maps) in enumerate(zip(theirs.levels, outputs[0])):
        n, _, h, w = maps.shape
        rows = maps.view(n, 9, CLASSES, h * w)
        assert torch.equal(level.logits[:, :, 0], rows.amax(1).transpose(1, 2))
        best = rows.amax(2).argmax(1)  # (n, h * w)
        deltas = outputs[1][i].view(n, 9, 4, h * w)
        anchors = other.bbox_head.prior_generator.single_level_grid_priors(
            (h, w), i, device='cpu'
        ).view(h * w, 9, 4)
        for p in (0, h * w - 1):
            a = best[1, p]
            box = other.bbox_head.bbox_coder.decode(anchors[p, a][None], deltas[1, a, :, p][None])
            torch.testing.assert_close(level.boxes.decode()[1, p], box)
            assert torch.equal(level.boxes.raw[1, p, 0], deltas[1, a, :, p])
    losses = attached(student('FCOS'), teacher('RetinaNet'))(**images, mode='loss')
    assert losses['loss_kd'] > 0


def test_a_term_that_reads_no_boxes_makes_none(monkeypatch):
    def refuse(self, *args):
        raise AssertionError('boxes were made')

    models = [student('FCOS'), teacher('RetinaNet')]
    monkeypatch.setattr(Boxes, 'raw', property(refuse))
    monkeypatch.setattr(Boxes, 'decode', refuse)
    model = attached(*models)
    assert model(**batch(model), mode='loss')['loss_kd'] > 0


def test_one_anchor_does_not_teach_several():
    with pytest.raises(TapError, match=r'has 9 anchors .* \(FCOSHead\), 1: .*detections'):
        attached(student('RetinaNet'), teacher('FCOS'))


def test_other_anchors_are_refused():
    config = model_config('RetinaNet')
    config.bbox_head.anchor_generator.ratios = [0.4, 1.0, 2.0]
    with pytest.raises(TapError, match='the anchors at stride 8 differ.*anchor_generator'):
        attached(student('RetinaNet'), build(config))


def test_softmax_over_several_anchors_has_no_maximum():
    models = []
    for family in ('FCOS', 'RetinaNet'):
        config = model_config(family)
        config.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
        models.append(build(config))
    with pytest.raises(TapError, match='softmax logits of several anchors'):
        attached(*models)


def test_maps_of_other_sizes_are_refused():
    model, other = student('GFL'), teacher('GFL')
    own, _, _ = read(model, batch(model))
    larger = batch(model, sample((128, 128)), sample((128, 128)))
    with pytest.raises(TapError, match=r'at stride 8 the student has \(2, 144, 1\).*\(2, 256, 1\)'):
        follow(other, larger, own)


def test_other_numbers_of_classes_are_refused():
    with pytest.raises(TapError, match='10 classes and the teacher .* 7'):
        attached(student('GFL'), build(model_config('GFL', classes=7)))
