"""The view cls_logits on RoI heads: the teacher classifies the student's own sampled RoIs."""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import FAMILIES as ZOO
from detectors import Family, model_config, run_config
from mmengine.structures import InstanceData
from region_batches import CLASSES, detector, empty, images, sample, student_step, teacher_step
from toys import train

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.losses import PKDLoss
from mmkd_plugin.taps import TapError
from mmkd_plugin.views import make_view
from mmkd_plugin.views.roi import RoILogits

FAMILIES = ('Faster R-CNN', 'Mask R-CNN', 'Cascade R-CNN')
KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', select='all')


def heads(model):
    """The box heads, one per stage."""
    found = model.roi_head.bbox_head
    return list(found) if isinstance(found, torch.nn.ModuleList) else [found]


def classify(model, stage, batch, rois):
    """Class logits of the RoIs by mmdet's own code, in eval."""
    roi_head = model.eval().roi_head
    arguments = (stage,) if len(heads(model)) > 1 else ()
    with torch.no_grad():
        maps = model.extract_feat(batch)
        return roi_head._bbox_forward(*arguments, maps, rois)['cls_score']


def batch():
    """Two sizes, an image without objects, an image with a crowd region only."""
    return [
        sample(),
        sample(boxes=[(5, 5, 60, 40)], labels=[2], size=(80, 64)),
        empty(),
        empty(crowd=[(0, 0, 50, 50)]),
    ]


def step(student, samples):
    torch.manual_seed(0)
    return student.train()(images(samples), samples, mode='loss')


@pytest.mark.parametrize('family', FAMILIES)
def test_the_teacher_classifies_the_students_rois_in_their_order(family):
    student, teacher = detector(family), detector(family, width=32, seed=1)
    own, theirs = make_view('cls_logits', student), make_view('cls_logits', teacher)
    assert isinstance(own, RoILogits)
    specs = own.specs(student)
    assert [s.label for s in specs] == [f'roi_head.bbox_head{i}' for i in ('.0', '.1', '.2')] or (
        [s.label for s in specs] == ['roi_head.bbox_head']
    )
    given = []
    for head in heads(student):
        head.loss_cls.register_forward_pre_hook(lambda module, args: given.append(args))
    samples = batch()
    predictions, _ = student_step(student, own, samples)
    taught = teacher_step(teacher, theirs, samples, predictions)
    assert len(predictions) == len(taught) == len(specs) == len(heads(student))
    for stage, (spec, s, t) in enumerate(zip(specs, predictions, taught)):
        (a,), (b,), rois = s.levels, t.levels, s.handover.rois
        assert a.logits.shape == b.logits.shape == (1, len(rois), 1, CLASSES + 1)
        assert (s.kind, s.activation, s.background) == ('roi', 'softmax', True)
        assert spec.columns == a.logits.shape[-1] and spec.num_classes == s.num_classes == CLASSES
        scores, labels, weights = given[stage][:3]
        torch.testing.assert_close(a.logits[0, :, 0], scores, rtol=0, atol=0)
        assert torch.equal(a.labels[0, :, 0], labels)
        assert torch.equal(a.label_weights[0, :, 0], weights)
        assert torch.equal(a.images[0], rois[:, 0].long()) and set(a.images[0].tolist()) == {
            0, 1, 2, 3
        }  # fmt: skip
        positive = a.labels[0, :, 0] < CLASSES
        assert set(a.images[0, positive].tolist()) <= {0, 1}, 'others have no objects'
        expected = classify(teacher, stage, images(samples), rois)
        torch.testing.assert_close(b.logits[0, :, 0], expected)
        assert len({tuple(row) for row in expected.tolist()}) > 1, 'rows that tell their order'
        assert a.logits.requires_grad and not b.logits.requires_grad
        assert b.labels is None


@pytest.mark.parametrize('family', FAMILIES)
def test_an_identical_teacher_teaches_nothing_and_a_perturbed_one_does(family):
    student = detector(family)
    teacher = copy.deepcopy(student)
    mmkd_plugin.attach(student, teacher, [KD])
    assert step(student, batch())['loss_kd'].abs() < 1e-6
    with torch.no_grad():
        for head in heads(teacher):
            head.fc_cls.weight.mul_(2)
    assert step(student, batch())['loss_kd'] > 1e-4


@pytest.mark.parametrize('family', FAMILIES)
def test_heads_run_once_per_stage_and_the_teachers_rpn_not_at_all(family):
    student, teacher = detector(family), detector(family, width=32, seed=1)
    mmkd_plugin.attach(student, teacher, [KD])
    step(student, batch())  # of the first batch the teacher's form is found, too
    calls = []
    for role, model in (('student', student), ('teacher', teacher)):
        parts = [*heads(model), model.rpn_head, model.neck]
        for i, part in enumerate(parts):
            part.register_forward_hook(lambda *_, key=(role, i): calls.append(key))
    step(student, batch())
    stages = len(heads(student))
    # the teacher's RPN is part number `stages`
    expected = [(r, i) for r in ('student', 'teacher') for i in range(stages + 2)]
    expected.remove(('teacher', stages))
    assert sorted(calls) == sorted(expected)


def test_the_loss_is_the_formula_and_trains_the_student_only():
    student, teacher = detector('Faster R-CNN'), detector('Faster R-CNN', width=32, seed=1)
    view = make_view('cls_logits', student)
    samples = batch()
    ((own,), _) = student_step(student, view, samples)
    rois, (level,) = own.handover.rois, own.levels
    target = classify(teacher, 0, images(samples), rois)
    expected = F.kl_divergence(level.logits[0, :, 0], target, 1.0)
    mmkd_plugin.attach(student, teacher, [dict(KD, weight=0.5)])
    losses = step(student, samples)
    torch.testing.assert_close(losses['loss_kd'], 0.5 * expected)
    assert losses['kd_rows'] == len(rois)
    losses['loss_kd'].sum().backward()
    gradients = [student.roi_head.bbox_head.fc_cls.weight.grad, *_grads(student.backbone)]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in _grads(student.backbone))
    assert not any(p.grad is not None for p in teacher.parameters())


def _grads(module):
    return [p.grad for p in module.parameters() if p.requires_grad]


def test_cascade_is_the_mean_over_its_stages():
    student, teacher = detector('Cascade R-CNN'), detector('Cascade R-CNN', width=32, seed=1)
    view = make_view('cls_logits', student)
    samples = batch()
    predictions, _ = student_step(student, view, samples)
    parts = [
        F.kl_divergence(
            own.levels[0].logits[0, :, 0],
            classify(teacher, stage, images(samples), own.handover.rois),
            1.0,
        )
        for stage, own in enumerate(predictions)
    ]
    rois = [own.handover.rois for own in predictions]
    assert not torch.equal(rois[0], rois[1]), 'each stage has regions of its own'
    mmkd_plugin.attach(student, teacher, [KD])
    losses = step(student, samples)
    torch.testing.assert_close(losses['loss_kd'], sum(parts) / 3)


def test_another_assigner_means_other_labels():
    student = detector('Faster R-CNN')
    view = make_view('cls_logits', student)
    samples, counts = [sample(), sample()], []
    for threshold in (2.0, 0.05):
        assigner = student.roi_head.bbox_assigner
        assigner.pos_iou_thr = assigner.neg_iou_thr = assigner.min_pos_iou = threshold
        ((own,), _) = student_step(student, view, samples)
        counts.append(int((own.levels[0].labels < CLASSES).sum()))
    # The sampler adds the four objects themselves.
    assert counts[0] == 4 and counts[1] > 4


@pytest.mark.parametrize('loss', ['DKDLoss', 'LoCaLoss', 'CKDLoss'])
@pytest.mark.parametrize('family', ['Faster R-CNN', 'Cascade R-CNN'])
def test_other_losses_take_the_rows(family, loss):
    student, teacher = detector(family), detector(family, width=32, seed=1)
    mmkd_plugin.attach(student, teacher, [dict(loss=dict(type=loss), student='cls_logits')])
    losses = step(student, batch())
    (value,) = [v for k, v in losses.items() if k == f'loss_{loss[:-4].lower()}']
    assert value.isfinite() and value > 0
    value.sum().backward()


def test_features_are_what_the_classification_layer_reads():
    student = detector('Cascade R-CNN')
    view = make_view('cls_logits', student, ('features',))
    predictions, _ = student_step(student, view, batch())
    for spec, head, own in zip(view.specs(student), heads(student), predictions):
        (level,) = own.levels
        assert level.features.shape == (1, level.logits.shape[1], spec.feature_dim)
        torch.testing.assert_close(head.fc_cls(level.features[0]), level.logits[0, :, 0])


@pytest.mark.parametrize('agnostic', [False, True])
def test_boxes_are_those_of_the_best_class_by_the_heads_own_coder(agnostic):
    def edit(config):
        config.roi_head.bbox_head.reg_class_agnostic = agnostic

    student = detector('Faster R-CNN', edit=edit)
    view = make_view('cls_logits', student)
    outputs = []
    student.roi_head.bbox_head.register_forward_hook(lambda m, a, out: outputs.append(out))
    samples = [sample(), sample()]
    ((own,), _) = student_step(student, view, samples)
    (level,), rois = own.levels, own.handover.rois
    ((scores, deltas),) = outputs
    best = scores[:, :CLASSES].argmax(1)
    expected = student.roi_head.bbox_head.regress_by_class(
        rois[:, 1:], best, deltas, dict(img_shape=None)
    )
    assert level.boxes.kind == 'deltas' and level.boxes.raw.shape == (1, len(rois), 1, 4)
    torch.testing.assert_close(level.boxes.decode()[0, :, 0], expected)


def test_a_sigmoid_head_without_background_column():
    def edit(config):
        config.roi_head.bbox_head.loss_cls = dict(
            type='CrossEntropyCustomLoss', use_sigmoid=True, num_classes=CLASSES
        )

    student = detector('Faster R-CNN', edit=edit)
    teacher = detector('Faster R-CNN', width=32, seed=1, edit=edit)
    (spec,) = make_view('cls_logits', student).specs(student)
    assert (spec.activation, spec.background, spec.columns) == ('sigmoid', False, CLASSES)
    mmkd_plugin.attach(student, teacher, [KD])
    assert step(student, [sample(), empty()])['loss_kd'] > 0


@pytest.mark.parametrize('sampler', ['OHEMSampler', 'ScoreHLRSampler'])
def test_samplers_that_try_the_head_first_do_not_confuse_the_rows(sampler):
    """They classify more regions than the loss sees, image by image."""

    def edit(config):
        if sampler == 'ScoreHLRSampler':
            config.roi_head.type = 'PISARoIHead'
            config.train_cfg.rcnn.update(isr=dict(k=2, bias=0), carl=dict(k=1, bias=0.2))
        config.train_cfg.rcnn.sampler = dict(
            type=sampler, num=8, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True
        )

    student = detector('Faster R-CNN', edit=edit)
    teacher = copy.deepcopy(student)
    view, calls, given = make_view('cls_logits', student, ('features',)), [], []
    head = student.roi_head.bbox_head
    head.register_forward_hook(lambda *_: calls.append(1))
    head.loss_cls.register_forward_pre_hook(lambda module, args: given.append(args))
    samples = batch()
    ((own,), _) = student_step(student, view, samples)
    assert len(calls) > 1
    (level,), rois = own.levels, own.handover.rois
    torch.testing.assert_close(level.logits[0, :, 0], given[-1][0], rtol=0, atol=0)
    torch.testing.assert_close(head.fc_cls(level.features[0]), level.logits[0, :, 0])
    expected = classify(teacher, 0, images(samples), rois)
    torch.testing.assert_close(level.logits[0, :, 0], expected)


def test_a_hybrid_task_cascade_without_semantic_branch(monkeypatch):
    htc = Family('htc/htc-without-semantic_r50_fpn_1x_coco.py', masks=True)
    monkeypatch.setitem(ZOO, 'HTC', htc)
    student, teacher = detector('HTC'), detector('HTC', width=32, seed=1)
    terms = [dict(KD, name='box'), dict(KD, student='mask_logits', name='mask')]
    mmkd_plugin.attach(student, teacher, terms)
    losses = step(student, batch())
    assert losses['loss_box'] > 0 and losses['loss_mask'] > 0
    mmkd_plugin.detach(student)
    mmkd_plugin.attach(student, copy.deepcopy(student), terms)
    losses = step(student, batch())
    assert losses['loss_box'] < 1e-5 and losses['loss_mask'] < 1e-5


# -- nothing to learn from ---------------------------------------------------------------------


@pytest.mark.parametrize('family', FAMILIES)
def test_a_step_without_any_roi_is_worth_nothing(family, monkeypatch):
    student, teacher = detector(family), detector(family, width=32, seed=1)
    mmkd_plugin.attach(student, teacher, [KD])
    original = student.rpn_head.loss_and_predict

    def no_proposals(x, data_samples, **kwargs):
        losses, proposals = original(x, data_samples, **kwargs)
        return losses, [InstanceData(bboxes=p.bboxes[:0]) for p in proposals]

    monkeypatch.setattr(student.rpn_head, 'loss_and_predict', no_proposals)
    losses = step(student, [empty(), empty()])
    assert losses['loss_kd'] == 0 and losses['kd_rows'] == 0
    total, _ = student.parse_losses(losses)
    total.backward()
    assert all(g is None or g.isfinite().all() for g in _grads(student))


@pytest.mark.parametrize('select', ['all', 'positive'])
def test_a_batch_without_objects(select):
    student, teacher = detector('Faster R-CNN'), detector('Faster R-CNN', width=32, seed=1)
    mmkd_plugin.attach(student, teacher, [dict(KD, select=select)])
    losses = step(student, [empty(), empty(crowd=[(0, 0, 90, 90)])])
    assert (losses['loss_kd'] > 0) == (select == 'all')  # background is a class like others
    losses['loss_kd'].sum().backward()
    gradients = [g for g in _grads(student) if g is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


# -- pairs that do not fit ---------------------------------------------------------------------


def test_other_classes_are_refused_before_training():
    student, teacher = detector('Faster R-CNN'), detector('Faster R-CNN', seed=1, classes=7)
    with pytest.raises(TapError, match='has 4 classes and the teacher .* 7'):
        mmkd_plugin.attach(student, teacher, [KD])


@pytest.mark.parametrize(
    'pair', [('Faster R-CNN', 'Cascade R-CNN', 1, 3), ('Cascade R-CNN', 'Faster R-CNN', 3, 1)]
)
def test_another_number_of_stages_is_refused_with_both_numbers(pair):
    student, teacher = detector(pair[0]), detector(pair[1], seed=1)
    message = rf'has {pair[2]} heads.*roi_head.bbox_head.*has {pair[3]} .*stages'
    with pytest.raises(TapError, match=message):
        mmkd_plugin.attach(student, teacher, [KD])


def test_a_dense_student_is_pointed_to_detections():
    with pytest.raises(TapError, match="teacher='detections'"):
        mmkd_plugin.attach(detector('GFL'), detector('Faster R-CNN', seed=1), [KD])


def test_a_teacher_that_fuses_more_into_its_rois_is_refused():
    student, teacher = detector('Cascade R-CNN'), detector('Cascade R-CNN', seed=1)
    teacher.roi_head.with_semantic = True  # as HTC's says
    with pytest.raises(TapError, match='CascadeRoIHead feeds its stages.*with_semantic'):
        mmkd_plugin.attach(student, teacher, [KD])


def test_a_head_with_columns_of_its_own_is_refused():
    model = detector('Faster R-CNN')
    head = model.roi_head.bbox_head
    head.fc_cls = torch.nn.Linear(head.fc_cls.in_features, 6)
    with pytest.raises(TapError, match='knows 4 classes, but CrossEntropyLoss gives its fc_cls 6'):
        make_view('cls_logits', model)


def test_a_nan_of_the_teacher_is_reported_with_its_head():
    student, teacher = detector('Faster R-CNN'), detector('Faster R-CNN', width=32, seed=1)
    distiller = mmkd_plugin.attach(student, teacher, [KD])
    with torch.no_grad():
        teacher.roi_head.bbox_head.fc_cls.bias[0] = torch.nan
    step(student, [sample(), sample()])
    with pytest.raises(FloatingPointError, match="teacher logits 'roi_head.bbox_head'"):
        distiller.raise_if_not_finite()


# -- for real ----------------------------------------------------------------------------------


@pytest.mark.parametrize('family', ['Faster R-CNN', 'Cascade R-CNN'])
def test_a_runner_trains_on_the_digits(family, digits_root, tmp_path):
    teacher = dict(model=model_config(family, 32), default_scope='mmdet')
    hook = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(config=teacher, allow_random=True),
        terms=[
            dict(KD, name='kd'),
            dict(loss=dict(type='CKDLoss'), student='cls_logits', weight=0.1),
        ],
    )
    config = run_config(
        model_config(family),
        digits_root / 'annotations' / 'train.json',
        digits_root / 'train',
        tmp_path,
        masks=False,
        custom_hooks=[hook],
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
    )
    scalars = train(config).message_hub.log_scalars
    for name in ('loss_kd', 'loss_ckd'):
        values = scalars[f'train/{name}'].data[0]
        assert len(values) == 2 and all(v > 0 for v in values)
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    detector(family, classes=10).load_state_dict(saved, strict=True)


# -- students that repeat their batch ----------------------------------------------------------

BRANCHES = 3


def c4(branches: int = 0, seed: int = 0, test_branch: int = 1):
    """A Faster R-CNN on one map, or a TridentNet of so many branches."""

    def edit(config):
        trident = dict(num_branch=branches, test_branch_idx=test_branch) if branches else {}
        config.pop('neck')
        config.backbone = dict(
            type='ResNet', depth=50, num_stages=3, base_channels=8, strides=(1, 2, 2),
            dilations=(1, 1, 1), out_indices=(2,),
        )  # fmt: skip
        if branches:
            config.type = 'TridentFasterRCNN'
            config.backbone.update(
                type='TridentResNet', trident_dilations=tuple(range(1, branches + 1)), **trident
            )
            config.roi_head.update(type='TridentRoIHead', **trident)
        config.rpn_head.in_channels = 128
        config.rpn_head.anchor_generator.update(strides=[16], scales=[2])
        config.roi_head.bbox_roi_extractor.update(out_channels=128, featmap_strides=[16])
        config.roi_head.bbox_head.in_channels = 128
        config.train_cfg.rcnn.sampler.num = 16

    return detector('Faster R-CNN', seed=seed, edit=edit)


def two():
    return [sample(), sample(boxes=[(5, 5, 60, 40)], labels=[2], size=(80, 64))]


def test_branches_of_a_student_are_the_teachers_images_again():
    student, teacher = c4(BRANCHES), c4(seed=1)
    samples = two()
    ((own,), _) = student_step(student, make_view('cls_logits', student), samples)
    rois = own.handover.rois
    assert set(rois[:, 0].tolist()) == set(range(BRANCHES * 2)), 'a whole batch for each branch'
    with torch.no_grad():
        maps = [torch.cat([x] * BRANCHES) for x in teacher.eval().extract_feat(images(samples))]
        target = teacher.roi_head._bbox_forward(tuple(maps), rois)['cls_score']
    assert not torch.allclose(target[rois[:, 0] == 0][:1], target[rois[:, 0] == 1][:1])
    mmkd_plugin.attach(student, teacher, [KD])
    losses = step(student, samples)
    expected = F.kl_divergence(own.levels[0].logits[0, :, 0], target, 1.0)
    torch.testing.assert_close(losses['loss_kd'], expected)
    losses['loss_kd'].backward()


def test_features_of_branches_are_compared_with_each_image_again():
    student, teacher = c4(BRANCHES), c4(seed=1)
    samples, loss, seen = two(), PKDLoss(), []
    terms = [
        dict(loss=dict(type='PKDLoss'), student='backbone', name='last'),
        dict(loss=dict(type='PKDLoss'), student='backbone.layer2', name='before'),
    ]
    mmkd_plugin.attach(student, teacher, terms)
    student.backbone.register_forward_hook(lambda *x: seen.append(x[-1][0]))
    losses = step(student, samples)
    with torch.no_grad():
        (target,) = teacher.eval().backbone(images(samples))
    assert len(seen[0]) == BRANCHES * len(target)
    torch.testing.assert_close(losses['loss_last'], loss(seen[0], torch.cat([target] * BRANCHES)))
    assert losses['loss_before'] > 0


def test_a_teacher_of_all_branches_is_refused_before_training():
    with pytest.raises(TapError, match='sees each image in 3 branches.*test_branch_idx=1'):
        mmkd_plugin.attach(c4(), c4(BRANCHES, seed=1, test_branch=-1), [KD])
    mmkd_plugin.attach(c4(), c4(BRANCHES, seed=1), [KD])


def repeats(model):
    """Every image twice, as a wrapper might: next to each other, not batch after batch."""
    original = model.loss

    def loss(inputs, data_samples):
        twice = [found for found in data_samples for _ in range(2)]
        return original(inputs.repeat_interleave(2, 0), twice)

    model.loss = loss
    return model


@pytest.mark.parametrize('family', ['Faster R-CNN', 'GFL', 'Deformable DETR'])
def test_an_order_that_is_not_known_is_refused(family):
    student, teacher = repeats(detector(family)), detector(family, seed=1)
    mmkd_plugin.attach(student, teacher, [KD])
    with pytest.raises(TapError, match='hold 4 images where the batch makes 2.*num_branch'):
        step(student, two())


def test_masks_and_features_of_an_unknown_order_are_refused():
    for term, words in (
        (dict(KD, student='mask_logits'), 'hold 4 images where the batch makes 2'),
        (dict(loss=dict(type='PKDLoss'), student='neck'), 'first dimensions differ.*TridentNet'),
    ):
        student = repeats(detector('Mask R-CNN'))
        mmkd_plugin.attach(student, detector('Mask R-CNN', seed=1), [term])
        with pytest.raises(TapError, match=words):
            step(student, two())
