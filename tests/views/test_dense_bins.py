"""The view dfl_logits: distributions of the four distances to the sides of a box."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_models import CLASSES, batch, build, follow, read, sample, student, teacher
from detectors import IMAGE, WIDTH, model_config
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from torch.nn import functional as nnf

import mmkd_plugin
from mmkd_plugin.taps import TapError

BINS = 17


def attached(own, other, **kwargs):
    config = dict(loss=dict(type='KDLoss', temperature=1.0), student='dfl_logits', **kwargs)
    own = copy.deepcopy(own)
    mmkd_plugin.attach(own, other, [config], probe_size=(IMAGE, IMAGE))
    return own.train()


def test_rows_are_the_sides_of_the_heads_boxes():
    model = student('GFL')
    own, view, recorder = read(model, batch(model), 'dfl_logits')
    (spec,) = view.specs(model)
    assert (spec.activation, spec.num_classes, spec.priors) == ('softmax', BINS, 4)
    assert not spec.background and own.num_classes == BINS
    for level, maps in zip(own.levels, recorder.raw(view.output)[0][1], strict=True):
        n, _, h, w = maps.shape
        assert level.logits.shape == (n, h * w, 4, BINS)
        assert level.logits.data_ptr() == maps.data_ptr()
        assert level.logits[1, w - 1, 2, 5] == maps[1, 2 * BINS + 5, 0, w - 1]
        # mean distances by hand lead to mmdet's boxes
        mean = (level.logits.softmax(-1) * torch.arange(BINS)).sum(-1) * level.stride
        corners = torch.cat((level.centers - mean[..., :2], level.centers + mean[..., 2:]), -1)
        torch.testing.assert_close(corners, level.boxes.decode()[..., 0, :])


def test_labels_mark_the_sides_of_assigned_positions():
    model = student('GFL')
    images = batch(model, sample(), sample((64, 80), [(5, 5, 60, 50)]))
    own, _, _ = read(copy.deepcopy(model), copy.deepcopy(images), 'dfl_logits')
    classes, _, _ = read(model, images, 'cls_logits')
    for bins, plain in zip(own.levels, classes.levels, strict=True):
        positive = (plain.labels < CLASSES).expand(-1, -1, 4)
        assert torch.equal(bins.labels, torch.where(positive, 0, BINS))
        assert torch.equal(bins.label_weights, plain.label_weights.expand(-1, -1, 4))
        if plain.valid is not None:
            assert torch.equal(bins.valid, plain.valid.expand(-1, -1, 4))
    assert any((level.labels == 0).any() for level in own.levels)


def test_positions_are_scored_by_their_class():
    model, other = student('GFL'), teacher('GFL')
    images = batch(model)
    own, _, _ = read(model, images, 'dfl_logits')
    theirs, view, recorder = follow(other, images, own, 'dfl_logits')
    for level, maps in zip(theirs.levels, recorder.raw(view.output)[0][0]):
        best = maps.sigmoid().amax(1).flatten(1)
        torch.testing.assert_close(level.score, best[..., None].expand(-1, -1, 4))
        assert not level.score.requires_grad


def test_term_over_positive_positions_is_the_formula():
    model, other = student('GFL'), teacher('GFL')
    images = batch(model)
    own, _, _ = read(copy.deepcopy(model), copy.deepcopy(images), 'dfl_logits')
    theirs, _, _ = follow(other, images, own, 'dfl_logits')
    rows = []
    for s, t in zip(own.levels, theirs.levels):
        divergence = nnf.kl_div(
            s.logits.log_softmax(-1), t.logits.log_softmax(-1), reduction='none', log_target=True
        ).sum(-1)
        rows.append(divergence[s.labels == 0])
    expected = torch.cat(rows).mean()
    losses = attached(model, other, select='positive')(**images, mode='loss')
    torch.testing.assert_close(losses['loss_kd'], expected.detach(), check_dtype=False)
    losses['loss_kd'].backward()


@pytest.mark.parametrize('objects', [3, 10, 20])
def test_recipe_has_the_value_and_the_gradient_of_ld(objects):
    """Beside mmdet's own LDHead with the same weights, whatever the number of objects."""
    model, other = trained_like(student('GFL')), trained_like(teacher('GFL'))
    g = torch.Generator().manual_seed(0)
    corners = 60 * torch.rand(objects, 2, generator=g)
    sizes = 12 + 24 * torch.rand(objects, 2, generator=g)
    boxes = torch.cat((corners, corners + sizes), 1).tolist()
    images = batch(model, *[with_classes(sample(boxes=boxes)) for _ in 'ab'])
    expected, gradients = by_ld_head(copy.deepcopy(model), other, images)

    terms = mmkd_plugin.recipes.resolve('kd-bins', model, other)['terms']
    mmkd_plugin.attach(model, other, terms, probe_size=(IMAGE, IMAGE))
    loss = model.train()(**images, mode='loss')['loss_kd_bins']
    assert expected > 0.01
    # GFL casts its bins to float32, in which the KL of distributions nearly alike loses digits.
    torch.testing.assert_close(loss, expected, rtol=5e-5, atol=0)
    parameters = dict(model.bbox_head.named_parameters())
    found = torch.autograd.grad(loss, [parameters[name] for name in gradients])
    largest = max(wanted.abs().max().item() for wanted in gradients.values())
    assert largest > 0
    for gradient, wanted in zip(found, gradients.values()):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * largest)


def trained_like(model):
    """Scores of about 0.27, as on the objects of a head that has learnt something."""
    torch.nn.init.constant_(model.bbox_head.gfl_cls.bias, -1.0)
    return model


def with_classes(image_and_sample):
    labels = image_and_sample[1].gt_instances.labels
    image_and_sample[1].gt_instances.labels = labels % CLASSES
    return image_and_sample


def by_ld_head(model, other, images):
    """``loss_ld`` of the official head on the student's features, and its gradient there."""
    cfg = model_config('GFL', WIDTH)
    head = dict(cfg.bbox_head, type='LDHead')
    head['loss_ld'] = dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(dict(head, train_cfg=cfg.train_cfg, test_cfg=cfg.test_cfg))
    head.load_state_dict(model.bbox_head.state_dict())
    features = model.train().extract_feat(images['inputs'])
    with torch.no_grad():
        taught = other.bbox_head(other.extract_feat(images['inputs']))
    loss = sum(head.loss(features, taught, images['data_samples'])['loss_ld'])
    regress = ('gfl_reg', 'scales', 'reg_convs')
    parameters = {n: p for n, p in head.named_parameters() if n.startswith(regress)}
    found = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, found))


def test_identical_heads_agree():
    own = student('GFL')
    model = attached(own, copy.deepcopy(own))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert model(**batch(model), mode='loss')['loss_kd'].abs() < 1e-6


def test_other_ranges_are_refused():
    config = model_config('GFL', 2 * WIDTH)
    config.bbox_head.reg_max = 8
    with pytest.raises(TapError, match=r'has 17 bins for a side.*\(GFLHead\), 9.*same reg_max'):
        attached(student('GFL'), build(config))


def test_other_classes_do_not_matter():
    other = build(model_config('GFL', 2 * WIDTH, classes=7))
    losses = attached(student('GFL'), other)
    assert losses(**batch(losses), mode='loss')['loss_kd'] > 0


def test_head_without_bins_is_refused():
    with pytest.raises(TapError, match=r"no view 'dfl_logits' fits FCOS .* fit it: cls_logits"):
        attached(student('FCOS'), teacher('GFL'))


def test_features_are_refused():
    from mmkd_plugin.views import make_view

    with pytest.raises(TapError, match="'dfl_logits' has not"):
        make_view('dfl_logits', student('GFL'), ('features',), 'term')
