"""The view of decoded boxes, and BoxDistillLoss on it, in every family of detectors."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_models import DENSE, batch, follow, read
from dense_models import sample as dense_sample
from dense_models import student as dense_student
from dense_models import teacher as dense_teacher
from detectors import FAMILIES, IMAGE, skip_if_too_large
from mmdet.registry import TASK_UTILS
from mmengine.registry import DefaultScope
from region_batches import (
    BOXES,
    CLASSES,
    detector,
    empty,
    images,
    sample,
    student_step,
    teacher_step,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.taps import TapError
from mmkd_plugin.views import make_view
from mmkd_plugin.views.dense_boxes import box_kind, read_boxes
from mmkd_plugin.views.query import corners_in_pixels
from mmkd_plugin.views.roi import _boxes

WITH_BOXES = [name for name in FAMILIES if name not in ('SOLO', 'Mask2Former')]
REGIONS = ('Faster R-CNN', 'Cascade R-CNN')
ALWAYS = dict(type='BoxDistillLoss', when='always')


def attached(student, teacher, **loss):
    term = dict(loss=dict(type='BoxDistillLoss', **loss), student='boxes', name='boxes')
    mmkd_plugin.attach(student, teacher, [term], probe_size=(IMAGE, IMAGE))
    student.train()
    for module in student.modules():  # as in the teacher, which does not train
        if isinstance(module, (_BatchNorm, nn.Dropout, nn.MultiheadAttention)):
            module.eval()
    return student


def step(student, samples):
    torch.manual_seed(0)  # RoI samplers draw
    if type(student).__name__ == 'RTMDet':  # its assigner would take its centres from masks
        samples = copy.deepcopy(samples)
        for found in samples:
            found.gt_instances.pop('masks', None)
    losses = student(images(samples), samples, mode='loss')
    parameters = [p for p in student.parameters() if p.requires_grad]
    found = torch.autograd.grad(losses['loss_boxes'], parameters, allow_unused=True)
    return losses, [g for g in found if g is not None]


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', DENSE)
def test_dense_rows_are_decoded_boxes_of_the_same_positions(family):
    model, other = dense_student(family), dense_teacher(family)
    data = batch(model)
    plain, _, _ = read(copy.deepcopy(model), copy.deepcopy(data))
    own, view, _ = read(model, data, 'boxes', ('truth',))
    (spec,) = view.specs(model)
    assert (spec.kind, spec.activation, spec.num_classes, spec.background) == (
        ('dense', 'none', 4, False)
    )  # fmt: skip
    theirs, _, _ = follow(other, data, own, 'boxes')
    expected, _, _ = follow(other, data, plain)
    truth = data['data_samples'][0].gt_instances
    for s, t, level, target in zip(
        own.levels, theirs.levels, plain.levels, expected.levels, strict=True
    ):
        torch.testing.assert_close(s.logits, level.boxes.decode())
        torch.testing.assert_close(t.logits, target.boxes.decode())
        assert s.logits.requires_grad and not t.logits.requires_grad
        assert torch.equal(s.labels == 0, level.labels < 10)
        objects = truth.bboxes[level.labels.clamp(max=1)]  # one of each class
        assert torch.equal(s.truth[s.labels == 0], objects[s.labels == 0])
        best = target.logits.sigmoid().amax(-1)
        assert t.score.shape == best.shape and (t.score <= best + 1e-6).all()


@pytest.mark.parametrize('family', REGIONS)
def test_regions_have_the_box_of_their_label(family):
    student, teacher = detector(family), detector(family, width=32, seed=1)
    samples = [sample(), empty()]
    views = [make_view('boxes', model, ('truth',)) for model in (student, teacher)]
    own, _ = student_step(student, views[0], samples)
    taught = teacher_step(teacher, views[1], samples, own)
    heads = student.roi_head.bbox_head
    for stage, (s, t) in enumerate(zip(own, taught, strict=True)):
        (a,), (b,), rows = s.levels, t.levels, s.handover.rows
        rois, labels = rows.handover.rois, rows.levels[0].labels[0, :, 0]
        positive = labels < CLASSES
        assert torch.equal(a.labels[0, :, 0] == 0, positive) and positive.any()
        head = heads[stage] if isinstance(heads, nn.ModuleList) else heads
        raw = rows.levels[0].boxes.of_classes
        assert (raw is None) == head.reg_class_agnostic
        for model, level in ((student, a), (teacher, b)):
            box_head = model.get_submodule(views[0].inner.heads[stage])
            deltas = _deltas(model, stage, rois, samples)
            if not head.reg_class_agnostic:
                deltas = deltas.view(len(rois), -1, 4)
                deltas = deltas[torch.arange(len(rois)), labels.clamp(max=CLASSES - 1)]
            expected = box_head.bbox_coder.decode(rois[:, 1:], deltas)
            found = level.logits[0, :, 0]
            torch.testing.assert_close(found[positive], expected[positive], atol=1e-3, rtol=1e-4)
        assert b.logits.shape == a.logits.shape


@torch.no_grad()
def _deltas(model, stage, rois, samples):
    forward = model.roi_head._bbox_forward
    maps = model.extract_feat(images(samples))
    more = (stage,) if isinstance(model.roi_head.bbox_head, nn.ModuleList) else ()
    return forward(*more, maps, rois)['bbox_pred']


def test_queries_come_with_the_object_that_they_were_matched_to():
    student, teacher = (detector('Deformable DETR', width, seed=width) for width in (16, 32))
    samples = [sample(labels=(1, 1)), empty()]  # of one class: the label does not tell which
    views = [make_view('boxes', model, ('truth',)) for model in (student, teacher)]
    own, _ = student_step(student, views[0], samples)
    taught = teacher_step(teacher, views[1], samples, own)
    assert len(own) == len(taught) == 2
    for s in own:
        (level,) = s.levels
        matched = level.truth[level.labels == 0]
        assert sorted(matched.round().tolist()) == [list(box) for box in sorted(BOXES)]
        assert (level.labels[1] == 4).all()


@pytest.mark.parametrize('family', DENSE)
def test_the_object_of_a_row_is_that_of_the_heads_assigner(family):
    """Objects on top of each other: their classes tell which is which, and are then taken away."""
    model = dense_student(family)
    g = torch.Generator().manual_seed(0)
    corner, size = 50 * torch.rand(10, 2, generator=g), 16 + 40 * torch.rand(10, 2, generator=g)
    objects = torch.cat([corner, (corner + size).clamp(max=IMAGE)], 1)
    of_images = objects, objects.flip(0)
    data = batch(model, *[dense_sample(boxes=boxes.tolist()) for boxes in of_images])
    own, view, recorder = read(model, data, 'boxes', ('truth',))
    levels = own.handover.rows.levels
    labels = [level.labels for level in levels]
    for level in levels:
        level.labels = torch.where(level.labels < 10, 0, 10)
    for found in data['data_samples']:
        found.gt_instances.labels = torch.zeros(10, dtype=torch.long)
    view.inner._add_truth(recorder, levels, data['data_samples'])
    right = []
    for level, label in zip(levels, labels):
        for i, wanted in enumerate(of_images):
            positive = label[i] < 10
            same = level.truth[i][positive] == wanted[label[i][positive]]
            right.append(same.all(1).float())
    right = torch.cat(right)
    # RetinaNet's loss gets deltas of anchors; overlaps with these miss a few low-quality matches.
    assert len(right) > 5 and right.mean() > (0.95 if family == 'RetinaNet' else 0.99)


# -- decode ------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', [*DENSE, 'TBLR'])
def test_gradients_through_the_decode_of_dense_heads(family):
    model = dense_student('ATSS' if family == 'TBLR' else family)
    head = model.bbox_head
    if family == 'TBLR':
        with DefaultScope.overwrite_default_scope('mmdet'):
            head.bbox_coder = TASK_UTILS.build(dict(type='TBLRBBoxCoder', normalizer=4.0))
    kind, priors = box_kind(head), head.prior_generator.num_base_priors[0]
    width = dict(dfl=4 * (getattr(head, 'reg_max', 0) + 1)).get(kind, 4)
    width = 2 * head.num_points if kind == 'points' else width
    g = torch.Generator().manual_seed(0)
    maps = torch.rand(1, priors * width, 2, 2, generator=g, dtype=torch.float64)
    maps = 10 * maps + 4 if kind == 'ltrb' else maps / 2 + 0.1  # distances are pixels
    _check_gradient(lambda x: read_boxes(head, kind, x, 0, priors).decode(), maps)


def test_gradients_through_the_decode_of_regions_and_queries():
    head = detector('Faster R-CNN').roi_head.bbox_head
    g = torch.Generator().manual_seed(0)
    rois = torch.tensor([[0.0, *box] for box in BOXES], dtype=torch.float64)
    logits = torch.rand(2, CLASSES, generator=g, dtype=torch.float64)
    deltas = torch.rand(2, 4 * CLASSES, generator=g, dtype=torch.float64) - 0.5
    classes = torch.tensor([[[1], [3]]])
    _check_gradient(lambda x: _boxes(head, logits, x, rois).of_classes(classes).decode(), deltas)
    queries = 0.2 + 0.3 * torch.rand(1, 3, 1, 4, generator=g, dtype=torch.float64)
    _check_gradient(lambda x: corners_in_pixels(x, [sample()]), queries)


def _check_gradient(decode, outputs):
    boxes = decode(outputs)
    assert boxes.dtype == torch.float64 and boxes.shape[-1] == 4
    g = torch.Generator().manual_seed(1)
    target = boxes + 3 * torch.rand(boxes.shape, generator=g, dtype=torch.float64)
    for loss in (F.giou_loss, F.box_l1):
        assert torch.autograd.gradcheck(
            lambda x, loss=loss: loss(decode(x).reshape(-1, 4), target.reshape(-1, 4)),
            outputs.clone().requires_grad_(),
            eps=1e-7,
            atol=1e-5,
        )


# -- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize('family', WITH_BOXES)
def test_a_step_of_each_family(family):
    """Another teacher teaches boxes; the student itself nothing; without objects there is none."""
    skip_if_too_large(family)
    model, other = detector(family), detector(family, width=32, seed=1)
    samples = [sample(), empty(), sample(crowd=[(5, 5, 60, 60)])]
    student = attached(copy.deepcopy(model), other, kind='both', when='always')
    losses, gradients = step(student, samples)
    assert losses['boxes_rows'] > 0 and gradients and all(g.isfinite().all() for g in gradients)
    if family != 'RTMDet':  # untrained, its sides are reversed, and such boxes teach nothing
        assert losses['loss_boxes'] > 0 and sum(g.abs().sum() for g in gradients) > 0

    gated = attached(copy.deepcopy(model), other)
    losses, gradients = step(gated, samples)
    assert losses['loss_boxes'].isfinite() and 0 <= losses['boxes_closer'] <= 1
    assert losses['boxes_rows'] > 0 and all(g.isfinite().all() for g in gradients)
    nothing, gradients = step(gated, [empty(), empty(crowd=[(5, 5, 60, 60)])])
    assert nothing['loss_boxes'] == 0 and all(g.eq(0).all() for g in gradients)

    alike = attached(copy.deepcopy(model), copy.deepcopy(model))
    losses, gradients = step(alike, samples)
    assert losses['loss_boxes'] == 0 and losses['boxes_closer'] == 0
    assert all(g.eq(0).all() for g in gradients)


@pytest.mark.parametrize('family', ['GFL', 'RetinaNet', 'Faster R-CNN', 'Deformable DETR'])
def test_a_better_teacher_is_let_through(family):
    """The student's own boxes are made wrong; where it was right the gate opens, and it learns."""
    teacher, samples = detector(family), [sample(), sample()]
    model = copy.deepcopy(teacher)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(('gfl_reg.bias', 'retina_reg.bias', 'fc_reg.bias')):
                parameter.add_(2.0 * torch.arange(len(parameter)) / len(parameter))
            elif 'reg_branches' in name and name.endswith('4.bias'):
                parameter.add_(1.0)
    gated = attached(copy.deepcopy(model), teacher, weight=None)
    losses, gradients = step(gated, samples)
    if losses['boxes_closer'] > 0:
        assert losses['loss_boxes'] > 0 and sum(g.abs().sum() for g in gradients) > 0
    always, _ = step(attached(model, teacher, when='always', weight=None), samples)
    assert always['loss_boxes'] > 0


def test_mixed_precision_computes_boxes_in_float32():
    model, other = detector('GFL'), detector('GFL', width=32, seed=1)
    plain, _ = step(attached(copy.deepcopy(model), other, when='always'), [sample()])
    student = attached(model, copy.deepcopy(other), when='always')
    with torch.autocast('cpu', torch.bfloat16):
        losses, gradients = step(student, [sample()])
    assert losses['loss_boxes'].dtype == torch.float32
    assert all(g.isfinite().all() for g in gradients)
    assert losses['loss_boxes'].item() == pytest.approx(plain['loss_boxes'].item(), rel=0.2)


# -- refusals ----------------------------------------------------------------------------------


def attach(own, other, **term):
    term = dict(dict(loss=dict(type='BoxDistillLoss'), student='boxes'), **term)
    mmkd_plugin.attach(own, other, [term], probe_size=(IMAGE, IMAGE))


@pytest.mark.parametrize(
    ('term', 'message'),
    [
        (dict(student='cls_logits'), "BoxDistillLoss compares boxes, but student='cls_logits'"),
        (dict(loss=dict(type='KDLoss')), "KDLoss compares logits, but student='boxes' gives rows"),
        (dict(loss=dict(type='GDDLoss')), "compares feature maps, but student='boxes' gives rows"),
        (dict(teacher='cls_logits'), "student='boxes' gives rows of boxes and teacher='cls_log"),
        (
            dict(student='bbox_head.gfl_reg'),
            'is a module path, but the loss needs truth and scores',
        ),
        (
            dict(loss=dict(ALWAYS, weight=None), student='bbox_head.gfl_reg'),
            'BoxDistillLoss compares decoded boxes, but student=',
        ),
        (dict(loss=dict(type='IPWDLoss')), 'gives boxes and their truth, no features or labels'),
    ],
)
def test_terms_that_do_not_fit_are_refused_before_training(term, message):
    with pytest.raises(TapError, match=message):
        attach(dense_student('GFL'), dense_teacher('GFL'), **term)


def test_pairs_that_do_not_fit_are_refused_before_training():
    with pytest.raises(TapError, match='dense head .* the student has not'):
        attach(detector('Faster R-CNN'), dense_teacher('GFL'))
    with pytest.raises(TapError, match='has 9 anchors per position .* FCOS|9 anchors per position'):
        attach(detector('RetinaNet'), detector('FCOS'))
    with pytest.raises(TapError, match='2 heads|1 heads|3 heads'):
        attach(detector('Faster R-CNN'), detector('Cascade R-CNN'))
    with pytest.raises(TapError, match='has 4 classes and the teacher .* 7'):
        attach(detector('Faster R-CNN'), detector('Faster R-CNN', classes=7))
    with pytest.raises(TapError, match="no view 'boxes' fits SOLO"):
        attach(detector('SOLO'), detector('SOLO'))


def test_rotated_boxes_have_no_view():
    model = detector('FCOS')
    model.bbox_head.angle_coder = nn.Identity()
    with pytest.raises(TapError, match="no view 'boxes' fits FCOS"):
        attach(model, detector('FCOS'))


def test_dense_boxes_are_taught_across_classes_anchors_and_coders():
    """Boxes have no classes: FCOS learns from RetinaNet of other classes, nine anchors to one."""
    student = attached(detector('FCOS'), detector('RetinaNet', classes=7, seed=1), when='always')
    losses, gradients = step(student, [sample()])
    assert losses['loss_boxes'] > 0 and all(g.isfinite().all() for g in gradients)


def test_a_head_that_never_names_its_objects_is_refused_before_training():
    def free(config):
        config.bbox_head.type = 'FreeAnchorRetinaHead'
        config.bbox_head.loss_bbox = dict(type='SmoothL1Loss', beta=0.11)

    student = detector('RetinaNet', edit=free)
    with pytest.raises(TapError, match="name no object for a prediction.* when='always'"):
        attach(copy.deepcopy(student), detector('RetinaNet'))
    losses, _ = step(attached(student, detector('RetinaNet', seed=1), when='always'), [sample()])
    assert losses['loss_boxes'] > 0
