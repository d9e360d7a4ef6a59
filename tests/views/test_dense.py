"""The views of dense heads, read after a training step of eight families."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from dense_models import (
    CLASSES,
    DENSE,
    batch,
    build,
    follow,
    patch_assignment,
    pattern,
    read,
    sample,
    student,
    teacher,
)
from detectors import IMAGE, WIDTH, model_config
from mmengine.config import ConfigDict

from mmkd_plugin.taps import Recorder, TapError
from mmkd_plugin.taps.partial_forward import set_inference
from mmkd_plugin.views import make_view
from mmkd_plugin.views.dense_targets import DenseTargets

SMALL = (64, 80)
CROWD = (20.0, 24.0, 60.0, 70.0)


def centernet_config() -> ConfigDict:
    config = model_config('FCOS')
    config.bbox_head = dict(
        type='CenterNetUpdateHead',
        num_classes=CLASSES,
        in_channels=WIDTH,
        feat_channels=WIDTH,
        stacked_convs=1,
        strides=[8, 16, 32, 64, 128],
        norm_cfg=dict(type='GN', num_groups=4),
    )
    return config


def flat(predictions, name):
    """A field of all levels, (N, all priors) in mmdet's order."""
    return torch.cat([getattr(level, name).flatten(1) for level in predictions.levels], 1)


@pytest.mark.parametrize('family', DENSE)
def test_rows_are_the_numbers_of_the_heads_maps_and_no_copy(family):
    model = student(family)
    own, view, recorder = read(model, batch(model), needs=('features',))
    (outputs,) = recorder.raw(view.output)
    (spec,) = view.specs(model)
    assert (own.label, own.kind, own.activation) == ('bbox_head', 'dense', 'sigmoid')
    assert (spec.columns, spec.num_classes, spec.background) == (CLASSES, CLASSES, False)
    assert [level.stride for level in own.levels] == [8, 16, 32, 64, 128][: len(own.levels)]
    assert len(own.levels) == len(outputs[0])
    for level, maps in zip(own.levels, outputs[0]):
        n, _, height, width = maps.shape
        assert level.logits.shape == (n, height * width, spec.priors, CLASSES)
        assert level.logits.data_ptr() == maps.data_ptr() and level.logits.requires_grad
        y, x, a, c = height - 1, width // 2, spec.priors - 1, 3
        row = level.logits[1, y * width + x, a, c]
        assert row == maps[1, a * CLASSES + c, y, x]
        assert level.features.shape == (n, height * width, spec.feature_dim)
    # mmdet's own way to rows, which its losses take
    rows = [m.permute(0, 2, 3, 1).reshape(len(m), -1) for m in outputs[0]]
    assert torch.equal(flat(own, 'logits'), torch.cat(rows, 1))


@pytest.mark.parametrize('family', DENSE)
def test_features_are_what_the_last_layer_turns_into_class_logits(family):
    model = student(family)
    own, view, recorder = read(model, batch(model), needs=('features',))
    paths = [point.path for point in view.features]
    assert all('cls' in path for path in paths)
    for i, level in enumerate(own.levels):
        layer = model.get_submodule(paths[i % len(paths)])
        size = recorder.raw(view.output)[0][0][i].shape[-2:]
        features = level.features.transpose(1, 2).unflatten(2, size)
        expected = layer(features).flatten(2).transpose(1, 2).unflatten(2, (-1, CLASSES))
        torch.testing.assert_close(level.logits, expected)


@pytest.mark.parametrize('family', DENSE)
def test_labels_are_those_of_the_heads_own_assigner(family):
    model = student(family)
    whole = ((0, 0, IMAGE, IMAGE), (0, 0, IMAGE - 1, IMAGE - 1))
    images = sample(boxes=whole), sample(boxes=whole)
    images[1][1].gt_instances.labels += 4  # other classes in the second image
    before, _, _ = read(copy.deepcopy(model), batch(model, *copy.deepcopy(images)))
    patch_assignment(model.bbox_head)
    own, _, _ = read(model, batch(model, *images))
    labels = flat(own, 'labels')
    for i in range(2):
        assigned = pattern(labels.shape[1])
        expected = torch.where(assigned > 0, assigned - 1 + 4 * i, CLASSES)
        assert torch.equal(labels[i], expected)
    assert (labels < CLASSES).sum() > 10
    assert not torch.equal(flat(before, 'labels'), labels)
    if family in ('FCOS', 'VFNet', 'YOLOX'):  # their losses weigh all rows alike
        assert own.levels[0].label_weights is None
    else:
        ignored = (pattern(labels.shape[1]) < 0).expand_as(labels)
        assert torch.equal(flat(own, 'label_weights') == 0, ignored)


@pytest.mark.parametrize('family', DENSE)
def test_labels_of_a_real_step_lie_on_the_objects(family):
    """Two images with one object each, in opposite corners: rows of images and levels in order."""
    model = student(family)
    corners = sample(boxes=[(2, 2, 46, 46)]), sample(boxes=[(50, 50, 94, 94)])
    own, _, _ = read(model, batch(model, *corners))
    found = [0, 0]
    for level in own.levels:
        for i, (low, high) in enumerate(((0, 48), (48, IMAGE))):
            hit = (level.labels[i] < CLASSES).any(-1)
            assert set(level.labels[i][hit].unique().tolist()) <= {0, CLASSES}
            if level.stride <= 16:  # coarse positions may lie outside of a small object
                inside = (level.centers >= low - 17) & (level.centers <= high + 17)
                assert inside[hit].all()
            found[i] += int(hit.sum())
    assert min(found) > 0


@pytest.mark.parametrize('family', (*DENSE, 'CenterNetUpdate'))
def test_decoded_boxes_are_mmdets(family):
    """Classes are set so that mmdet returns every prior once, in order; then boxes must agree."""
    model = build(centernet_config()) if family not in DENSE else teacher(family, WIDTH, seed=0)
    set_inference(model)
    images = batch(model)
    view = make_view('cls_logits', model, (), 'term')
    recorder = Recorder(model, 'student')
    recorder.listen(view.points)
    recorder.arm()
    with torch.no_grad():
        features = model.extract_feat(images['inputs'])
        model.bbox_head(features)
        recorder.disarm()
        (own,) = view.read(recorder, images['data_samples'])
        model.bbox_head.training = False
        scores, *others = model.bbox_head(features)
        ordered = [torch.full_like(m, -50.0) for m in scores]
        for m, priors in zip(ordered, view.grid.priors):
            rows = m.unflatten(1, (priors, -1)).permute(0, 3, 4, 1, 2)[..., 0]
            rows.copy_(torch.linspace(5, -5, rows[0].numel()).view(rows.shape[1:]))
        results = model.bbox_head.predict_by_feat(
            ordered,
            *others,
            batch_img_metas=[dict(img_shape=(10**6, 10**6))] * 2,
            cfg=ConfigDict(score_thr=0.0 if family == 'YOLOX' else 1e-9, nms_pre=10**6),
            with_nms=False,
        )
    for i, result in enumerate(results):
        boxes = torch.cat([level.boxes.decode()[i].flatten(0, 1) for level in own.levels])
        assert len(boxes) == len(result.bboxes)
        expected = result.bboxes.clamp(min=0)  # mmdet cuts boxes off at the image's border
        torch.testing.assert_close(boxes.clamp(min=0), expected, atol=1e-3, rtol=1e-5)
        assert boxes.std(0).min() > 1
    kinds = dict(RetinaNet='deltas', ATSS='deltas', GFL='dfl', YOLOX='cxcywh', RepPoints='points')
    assert own.levels[0].boxes.kind == kinds.get(family, 'ltrb')


@pytest.mark.parametrize('family', ('FCOS', 'ATSS', 'YOLOX'))
def test_centerness_and_objectness_are_the_quality(family):
    model = student(family)
    own, view, recorder = read(model, batch(model))
    quality = [m.flatten(1) for m in recorder.raw(view.output)[0][2]]
    assert torch.equal(flat(own, 'quality'), torch.cat(quality, 1))
    assert read(student('GFL'), batch(model))[0].levels[0].quality is None


@pytest.mark.parametrize('family', DENSE)
def test_padding_and_crowds_are_not_valid(family):
    model = student(family)
    own, _, _ = read(model, batch(model, sample(crowds=[CROWD]), sample(SMALL, [(5, 5, 60, 50)])))
    offset = 0.5 if family == 'FCOS' else 0.0
    for level in own.levels:
        assert level.valid.shape == level.logits.shape[:3]
        side = round(len(level.centers) ** 0.5)
        for p in range(len(level.centers)):
            x, y = (p % side + offset) * level.stride, (p // side + offset) * level.stride
            assert level.centers[p].tolist() == [x, y]
            in_crowd = CROWD[0] <= x <= CROWD[2] and CROWD[1] <= y <= CROWD[3]
            in_image = x < IMAGE and y < IMAGE
            assert level.valid[0, p].all() == level.valid[0, p].any() == (in_image and not in_crowd)
            assert level.valid[1, p].all() == level.valid[1, p].any() == (x < 80 and y < 64)
    plain, _, _ = read(model, batch(model))
    assert all(level.valid is None or level.valid[..., 0].any() for level in plain.levels)
    if family != 'FCOS':  # its coarsest centre lies outside of these images
        assert all(level.valid is None for level in plain.levels)


@pytest.mark.parametrize('family', DENSE)
@pytest.mark.parametrize('crowds', [(), [(0, 0, 96, 96)]], ids=['empty', 'crowd only'])
def test_image_without_objects_is_all_background(family, crowds):
    model = student(family)
    images = sample(boxes=(), crowds=crowds), sample()
    own, _, _ = read(model, batch(model, *images))
    labels = flat(own, 'labels')
    assert (labels[0] == CLASSES).all() and (labels[1] < CLASSES).any()
    nothing, _, _ = read(model, batch(model, images[0], images[0]))
    assert (flat(nothing, 'labels') == CLASSES).all()
    if crowds:
        assert not any(level.valid[0].any() for level in own.levels)


@pytest.mark.parametrize('family', DENSE)
def test_teacher_gives_the_form_of_the_student(family):
    model, wide = student(family), teacher(family)
    images = batch(model)
    own, _, _ = read(model, images)
    theirs, _, _ = follow(wide, images, own)
    for s, t in zip(own.levels, theirs.levels, strict=True):
        assert s.logits.shape == t.logits.shape and s.stride == t.stride
        assert s.boxes.kind == t.boxes.kind and s.boxes.raw.shape == t.boxes.raw.shape
        assert (s.quality is None) == (t.quality is None)
        assert t.labels is None and not t.logits.requires_grad
    assert theirs.activation == own.activation


def test_softmax_head_has_a_background_column():
    config = model_config('RetinaNet')
    config.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
    model = build(config).train()
    own, view, _ = read(model, batch(model))
    (spec,) = view.specs(model)
    assert (spec.activation, spec.background, spec.num_classes) == ('softmax', True, CLASSES)
    assert own.background and own.levels[0].logits.shape[-1] == CLASSES + 1
    assert (flat(own, 'labels') < CLASSES).any()


def test_losses_of_some_rows_before_that_of_all_are_passed_over():
    """PAA scores candidates with its loss_cls, then chooses positives; rows go by images."""
    config = model_config('ATSS')
    config.bbox_head.update(
        type='PAAHead', reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss', loss_weight=1.3)
    )
    config.train_cfg.assigner = dict(
        type='MaxIoUAssigner', pos_iou_thr=0.1, neg_iou_thr=0.1, ignore_iof_thr=-1
    )
    model = build(config).train()
    corners = sample(boxes=[(2, 2, 46, 46)]), sample(boxes=[(50, 50, 94, 94)])
    own, view, recorder = read(model, batch(model, *corners))
    assert len(recorder.raw(view.targets.points[0])) == 3
    for i, (low, high) in enumerate(((0, 48), (48, IMAGE))):
        hits = [level.centers[(level.labels[i] == 0).any(-1)] for level in own.levels[:2]]
        assert (
            len(hits[0]) and ((torch.cat(hits) >= low - 17) & (torch.cat(hits) <= high + 17)).all()
        )


def test_unknown_boxes_are_left_out():
    """FoveaBox has a coder but decodes by a formula of its own."""
    config = model_config('FCOS')
    config.bbox_head = dict(
        type='FoveaHead', num_classes=CLASSES, in_channels=WIDTH, feat_channels=WIDTH,
        stacked_convs=1, strides=[8, 16, 32, 64, 128], base_edge_list=[16, 32, 64, 128, 256],
        scale_ranges=((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='SmoothL1Loss', beta=0.11),
    )  # fmt: skip
    model = build(config).train()
    own, _, _ = read(model, batch(model))
    assert all(level.boxes is None for level in own.levels)
    assert (flat(own, 'labels') < CLASSES).any()


@pytest.mark.parametrize('family', ['CondInst', 'RTMDet-Ins'])
def test_heads_with_more_outputs_are_served(family):
    """Kernels of masks, and features that belong to no level, are passed over."""
    if family == 'CondInst':
        config = model_config(family)
    else:
        config = model_config('RTMDet')
        config.bbox_head.type = 'RTMDetInsSepBNHead'
        config.bbox_head.num_prototypes = 4
        config.bbox_head.pop('exp_on_reg')
    model = build(config)
    set_inference(model)
    view = make_view('cls_logits', model, (), 'term')
    recorder = Recorder(model, 'student')
    recorder.listen(view.points)
    recorder.arm()
    images = batch(model)
    with torch.no_grad():
        model.bbox_head(model.extract_feat(images['inputs']))
    (own,) = view.read(recorder, images['data_samples'])
    assert (own.levels[0].quality is not None) == (family == 'CondInst')
    assert own.levels[0].boxes.kind == 'ltrb' and own.levels[0].labels is None


def two_images():
    """Other classes in the second image, so that labels tell the order of rows."""
    images = sample(), sample()
    images[1][1].gt_instances.labels += 4
    return images


@pytest.mark.parametrize('first', ['one image', 'constant maps'])
def test_the_order_of_rows_is_seen_in_every_step(first):
    """YOLOX goes image by image, which the first step here cannot show."""
    model = student('YOLOX')
    patch_assignment(model.bbox_head)
    view = make_view('cls_logits', model, (), 'term')
    recorder = Recorder(model, 'student')
    recorder.listen(view.points)

    def labels(*images):
        data = batch(model, *images)
        recorder.arm()
        model(**data, mode='loss')
        return flat(view.read(recorder, data['data_samples'])[0], 'labels')

    def constant(module, args, outputs):
        for maps in outputs[2]:  # objectness, by which its rows are known
            maps.detach().zero_()

    if first == 'one image':
        labels(sample())
    else:
        hook = model.bbox_head.register_forward_hook(constant, prepend=True)
        labels(*two_images())
        hook.remove()
    expected, _, _ = read(model, batch(model, *two_images()))
    assert torch.equal(labels(*two_images()), flat(expected, 'labels'))


@pytest.mark.parametrize('family', ['FCOS', 'YOLOX'])
def test_a_compiled_step_hears_the_same_labels(family):
    model = student(family)
    patch_assignment(model.bbox_head)
    own, _, recorder = read(model, batch(model, *two_images()))
    targets = DenseTargets(model.bbox_head, 'bbox_head')
    logits, quality = zip(*[(level.logits, level.quality) for level in own.levels])
    torch._dynamo.reset()
    run = torch.compile(lambda: targets.read(recorder, logits, quality), backend='eager')
    for (labels, _), level in zip(run(), own.levels, strict=True):
        assert torch.equal(labels, level.labels)


def reason(model) -> str:
    """Why the view could not hear the labels; without them it still reads logits."""
    predictions, _, _ = read(model, batch(model))
    assert all(level.labels is None for level in predictions.levels)
    assert all(level.logits.requires_grad for level in predictions.levels)
    return predictions.no_labels


def test_head_that_never_calls_its_loss_is_named():
    config = model_config('RetinaNet')
    config.bbox_head.type = 'FreeAnchorRetinaHead'
    config.bbox_head.loss_bbox = dict(type='SmoothL1Loss', beta=0.11)
    model = build(config).train()
    assert re.search(r'FreeAnchorRetinaHead\) did not call its loss_cls', reason(model))


def test_head_that_drops_positives_after_its_loss_is_named():
    """FSAF gives every object to all levels and trains the best of them."""
    config = model_config('RetinaNet')
    config.bbox_head.update(
        type='FSAFHead',
        reg_decoded_bbox=True,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=1, scales_per_octave=1, ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type='TBLRBBoxCoder', normalizer=4.0),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, reduction='none'),
        loss_bbox=dict(type='IoULoss', reduction='none'),
    )  # fmt: skip
    config.train_cfg.assigner = dict(
        type='CenterRegionAssigner', pos_scale=0.2, neg_scale=0.2, min_pos_iof=0.01
    )
    model = build(config).train()
    assert re.search(r'FSAFHead\) gives its loss_cls every object on all levels', reason(model))


def test_head_whose_loss_gets_something_else_is_named():
    config = centernet_config()
    model = build(config).train()
    assert re.search(r'CenterNetUpdateHead\) gave its loss_cls .*pos_inds', reason(model))


def test_rows_that_are_no_class_maps_are_refused():
    model = student('GFL')
    model.bbox_head.loss_cls.register_forward_pre_hook(
        lambda module, args: (args[0].flip(0), *args[1:]), prepend=True
    )
    assert 'are not its class maps' in reason(model)


def test_missing_classification_layer_is_refused_for_features():
    model = student('GFL')
    model.bbox_head.last = model.bbox_head.gfl_cls
    del model.bbox_head.gfl_cls
    with pytest.raises(TapError, match=r"no convolution with\s'cls' in its name"):
        make_view('cls_logits', model, ('features',), 'term')
