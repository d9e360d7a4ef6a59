"""Class logits of query detectors: labels by layer, and the teacher in the student's order."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from detectors import _shrink, _shrink_backbone, skip_if_too_large
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.config import Config
from mmengine.hub import get_config
from region_batches import CLASSES, detector, empty, images, sample, student_step, teacher_step
from torch import nn

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher import Teacher, build_model
from mmkd_plugin.views.make import make_view
from mmkd_plugin.views.predictions import Boxes, Level
from mmkd_plugin.views.query import QueryLogits, match_queries, matching_cost

KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', name='kd')
QUERIES, LAYERS = 8, 2


def two_stage(config):
    config.update(as_two_stage=True, with_box_refine=True)


def from_config(path: str, levels: int, width: int = 16) -> Config:
    model = get_config(f'mmdet::{path}').model
    _shrink(model, width, CLASSES)
    _shrink_backbone(model, width, levels)
    model.bbox_head.embed_dims = width
    return Config(dict(model=model, default_scope='mmdet'))


def query_detector(kind: str, width: int = 16, seed: int = 0, queries: int = QUERIES):
    """A tiny query detector without dropout; DETR has a softmax with a background column."""
    skip_if_too_large(kind)
    if kind == 'DETR':
        config = from_config('detr/detr_r50_8xb2-150e_coco.py', 1, width)
        config.model.num_queries = queries
        torch.manual_seed(seed)
        model = build_model(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
    else:

        def edit(config):
            config.num_queries = queries
            if kind == 'two-stage':
                two_stage(config)

        family = 'DINO' if kind == 'DINO' else 'Deformable DETR'
        model = detector(family, width, seed, edit=edit)
        if kind == 'two-stage':  # its default fits 256 channels only
            embed = model.get_proposal_pos_embed
            model.get_proposal_pos_embed = partial(embed, num_pos_feats=width // 2)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model.train()


KINDS = ['DETR', 'Deformable DETR', 'two-stage', 'DINO']


def view_of(model, role='student', needs=()):
    return make_view('cls_logits', model, needs, f'terms[0].{role}')


def batch():
    return [sample(labels=(1, 3)), sample(labels=(2, 0), size=(80, 64))]


class OneAfterTheOther:
    """Assigns the truth of its n-th call to the queries n and n + 1."""

    def __init__(self):
        self.calls = 0

    def assign(self, pred_instances, gt_instances, img_meta):
        found = torch.zeros(len(pred_instances), dtype=torch.long)
        for k in range(len(gt_instances)):
            found[(self.calls + k) % QUERIES] = k + 1
        self.calls += 1
        return AssignResult(len(gt_instances), found, None, gt_instances.labels)


@pytest.mark.parametrize('kind', KINDS)
def test_labels_are_those_of_the_students_own_assigner(kind):
    student = query_detector(kind)
    student.bbox_head.assigner = OneAfterTheOther()
    predictions, _ = student_step(student, view_of(student), batch())
    assert len(predictions) == LAYERS
    for layer, p in enumerate(predictions):
        (level,) = p.levels
        expected = torch.full((2, QUERIES), CLASSES)
        for n, truth in enumerate(((1, 3), (2, 0))):
            call = 2 * layer + n  # layer by layer, and in each image by image
            expected[n, [call, call + 1]] = torch.tensor(truth)
        assert torch.equal(level.labels[..., 0], expected)
        assert level.label_weights.shape == (2, QUERIES, 1) and (level.label_weights == 1).all()


@pytest.mark.parametrize('kind', KINDS)
def test_logits_and_boxes_are_the_heads_own_without_denoising(kind):
    student = query_detector(kind)
    view = view_of(student, needs=('features',))
    seen = {}
    student.bbox_head.register_forward_hook(lambda m, args, out: seen.update(args=args, out=out))
    samples = batch()
    predictions, _ = student_step(student, view, samples)
    scores, boxes = seen['out']
    extra = scores.shape[2] - QUERIES
    assert (extra > 0) == (kind == 'DINO')
    for layer, p in enumerate(predictions):
        (level,) = p.levels
        assert p.kind == 'query' and p.background == (kind == 'DETR')
        assert p.activation == ('softmax' if kind == 'DETR' else 'sigmoid')
        assert torch.equal(level.logits[:, :, 0], scores[layer, :, extra:])
        scale = torch.tensor([[96, 96, 96, 96], [64, 80, 64, 80.0]])[:, None]
        corners = bbox_cxcywh_to_xyxy(boxes[layer, :, extra:]) * scale
        torch.testing.assert_close(level.boxes.decode()[:, :, 0], corners)
        # the classification layer of this very decoder layer makes the logits of the features
        head = student.bbox_head
        classify = head.fc_cls if kind == 'DETR' else head.cls_branches[layer]
        torch.testing.assert_close(classify(level.features), level.logits[:, :, 0])
    (spec, *_), columns = view.specs(student), CLASSES + (kind == 'DETR')
    assert (spec.columns, spec.feature_dim) == (columns, 16)


def permuted(teacher, order):
    """The same teacher with its queries in another order."""
    teacher = copy.deepcopy(teacher)
    teacher.bbox_head.register_forward_hook(lambda m, args, out: tuple(x[:, :, order] for x in out))
    return teacher


@pytest.mark.parametrize('kind', KINDS)
def test_the_order_of_the_teachers_queries_does_not_matter(kind):
    student, teacher = query_detector(kind), query_detector(kind, width=32, seed=1)
    samples = batch()
    own, _ = student_step(student, view_of(student), samples)
    order = torch.tensor([3, 1, 7, 0, 6, 2, 5, 4])
    plain = teacher_step(teacher, view_of(teacher, 'teacher'), samples, own)
    other = permuted(teacher, order)
    shuffled = teacher_step(other, view_of(other, 'teacher'), samples, own)
    for a, b, s in zip(plain, shuffled, own):
        assert a.levels[0].logits.shape == s.levels[0].logits.shape
        # Not the rows themselves: random DETRs put their boxes so close together that several
        # assignments cost the same to the last digit.
        costs = [
            matching_cost(s.levels[0], t.levels[0], t.activation, None).diagonal(dim1=1, dim2=2)
            for t in (a, b)
        ]
        torch.testing.assert_close(costs[0].sum(1), costs[1].sum(1))
        if kind != 'DETR':
            torch.testing.assert_close(a.levels[0].logits, b.levels[0].logits)
            torch.testing.assert_close(a.levels[0].boxes.decode(), b.levels[0].boxes.decode())
        assert a.levels[0].valid.all() and not a.levels[0].logits.requires_grad


@pytest.mark.parametrize('kind', KINDS)
def test_a_shuffled_copy_of_the_student_is_matched_to_itself(kind):
    student = query_detector(kind)
    student.train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    samples = batch()
    own, _ = student_step(student, view_of(student), samples)
    copied = permuted(student, torch.arange(QUERIES - 1, -1, -1))
    theirs = teacher_step(copied, view_of(copied, 'teacher'), samples, own)
    for s, t in zip(own, theirs):
        torch.testing.assert_close(s.levels[0].logits, t.levels[0].logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('teacher_queries, matched', [(6, 6), (11, 8)])
def test_surplus_queries_are_left_out(teacher_queries, matched):
    student = query_detector('Deformable DETR')
    teacher = query_detector('Deformable DETR', seed=1, queries=teacher_queries)
    own, _ = student_step(student, view_of(student), batch())
    theirs = teacher_step(teacher, view_of(teacher, 'teacher'), batch(), own)
    for p in theirs:
        assert p.levels[0].logits.shape[:3] == (2, QUERIES, 1)
        assert (p.levels[0].valid.sum(dim=1) == matched).all()


def test_the_cost_is_the_documented_one_and_the_assignment_the_best():
    generator = torch.Generator().manual_seed(0)

    def level(queries):
        logits = torch.randn(1, queries, 1, 3, generator=generator)
        boxes = torch.rand(1, queries, 1, 4, generator=generator)
        return Level(logits, boxes=Boxes('cxcywh', boxes, boxes.clone))

    s, t = level(4), level(5)
    (cost,) = matching_cost(s, t, 'sigmoid')
    p, q = s.logits[0, :, 0].sigmoid(), t.logits[0, :, 0].sigmoid()
    a, b = s.boxes.raw[0, :, 0], t.boxes.raw[0, :, 0]
    giou = bbox_overlaps(bbox_cxcywh_to_xyxy(a), bbox_cxcywh_to_xyxy(b), mode='giou')
    expected = (
        2 * (p[:, None] - q).abs().sum(-1) + 5 * (a[:, None] - b).abs().sum(-1) + 2 * (1 - giou)
    )
    torch.testing.assert_close(cost, expected)

    best = min(
        itertools.permutations(range(5), 4), key=lambda o: sum(cost[i, j] for i, j in enumerate(o))
    )
    partner, matched = match_queries(torch.stack([cost, cost]))
    assert partner.tolist() == [list(best)] * 2 and matched.all()
    # a class map: only the shared columns count; unlike columns without one: only the boxes
    shared = torch.tensor([0, 2]), torch.tensor([2, 1])
    mapped = matching_cost(s, t, 'sigmoid', shared)[0]
    boxes_only = expected - 2 * (p[:, None] - q).abs().sum(-1)
    torch.testing.assert_close(
        mapped, boxes_only + 2 * (p[:, None, [0, 2]] - q[:, [2, 1]]).abs().sum(-1)
    )
    t.logits = torch.cat([t.logits, t.logits], dim=-1)
    torch.testing.assert_close(matching_cost(s, t, 'sigmoid')[0], boxes_only)


def test_nan_boxes_are_matched_last():
    cost = torch.tensor([[[1.0, float('nan'), 0.5], [float('nan'), float('nan'), 0.1]]])
    partner, matched = match_queries(cost)
    assert partner.tolist() == [[0, 2]] and matched.all()


def attached(kind, term=KD, seed=1, **kwargs):
    student, teacher = query_detector(kind), query_detector(kind, seed=seed, **kwargs)
    mmkd_plugin.attach(student, teacher, [dict(term)])
    return student, teacher


@pytest.mark.parametrize('kind', KINDS)
def test_the_loss_is_zero_for_a_copy_and_the_formula_for_another_teacher(kind):
    for seed, width in ((0, 16), (1, 32)):
        student, teacher = query_detector(kind), query_detector(kind, width, seed)
        mmkd_plugin.attach(student, teacher, [dict(KD, select='all')])
        if seed == 0:
            for module in student.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        samples = batch()
        twin = copy.deepcopy(teacher)
        plain = query_detector(kind)
        plain.load_state_dict(student.state_dict())
        for ours, theirs in zip(plain.modules(), student.modules()):
            ours.training = theirs.training
        losses = student(images(samples), samples, mode='loss')
        losses['loss_kd'].backward()
        if seed == 0:
            torch.testing.assert_close(losses['loss_kd'], torch.zeros(()), rtol=0, atol=1e-6)
            continue
        own, _ = student_step(plain, view_of(plain), samples)
        rows = teacher_step(twin, view_of(twin, 'teacher'), samples, own)
        values = [
            F.kl_divergence(s.levels[0].logits.reshape(-1, 5), t.levels[0].logits.reshape(-1, 5))
            if kind == 'DETR'
            else F.binary_kl(s.levels[0].logits.flatten(0, 2), t.levels[0].logits.flatten(0, 2))
            for s, t in zip(own, rows)
        ]
        torch.testing.assert_close(losses['loss_kd'], sum(values) / LAYERS, rtol=1e-4, atol=1e-6)
        grads = [p.grad for p in student.bbox_head.parameters() if p.grad is not None]
        assert grads and all(g.isfinite().all() for g in grads)


def test_denoising_queries_have_no_part_in_the_loss():
    student, teacher = query_detector('DINO'), query_detector('DINO', seed=1)
    mmkd_plugin.attach(student, teacher, [KD])
    samples = batch()

    def step():
        torch.manual_seed(3)  # noise of the denoising boxes
        return student(images(samples), samples, mode='loss')

    before = step()
    with torch.no_grad():
        student.dn_query_generator.label_embedding.weight.normal_(std=5)
    after = step()
    assert not torch.allclose(before['dn_loss_cls'], after['dn_loss_cls'])
    torch.testing.assert_close(before['loss_kd'], after['loss_kd'])
    after['loss_kd'].backward()
    gradient = student.dn_query_generator.label_embedding.weight.grad
    assert gradient is None or not gradient.any()


def test_a_class_map_has_its_say_in_the_matching():
    """A teacher with its classes in reverse order, its map known, teaches as if they were not."""
    values = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        student, teacher = query_detector('Deformable DETR'), query_detector('Deformable DETR', 32)
        for layer in set(teacher.bbox_head.cls_branches):  # the decoder's layers share one
            layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
        handle = Teacher(teacher, class_map=order)
        mmkd_plugin.attach(student, handle, [KD])
        samples = batch()
        values.append(student(images(samples), samples, mode='loss')['loss_kd'])
    assert values[0] > 0
    torch.testing.assert_close(*values)


def test_positives_only_and_images_without_objects():
    term = dict(KD, select='positive')
    student, _ = attached('Deformable DETR', term)
    samples = [empty(), empty()]
    losses = student(images(samples), samples, mode='loss')
    assert losses['loss_kd'] == 0 and losses['kd_rows'] == 0
    losses['loss_kd'].backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
    samples = [sample(), empty()]
    losses = student(images(samples), samples, mode='loss')
    assert losses['loss_kd'] > 0 and losses['kd_rows'] == 2  # the mean of both layers


def test_a_teacher_of_another_depth_or_kind_is_refused():
    student = query_detector('Deformable DETR')

    def deeper(config):
        config.decoder.num_layers = 3

    with pytest.raises(TapError, match='has 2 heads to distil .* has 3'):
        mmkd_plugin.attach(student, detector('Deformable DETR', edit=deeper), [KD])
    with pytest.raises(TapError, match='set of queries, RetinaNet does not'):
        view_of(student, 'teacher').check_pair(
            view_of(detector('RetinaNet')), (detector('RetinaNet'), student)
        )
    with pytest.raises(TapError, match='background'):
        mmkd_plugin.attach(student, query_detector('DETR'), [KD])


def test_heads_that_have_no_fixed_rows_are_refused():
    model = query_detector('DINO')
    model.bbox_head.aux_cls_branches = nn.ModuleList()
    with pytest.raises(TapError, match='varying subset of its queries'):
        view_of(model)
    model = query_detector('DINO')
    model.language_model = nn.Identity()
    assert not QueryLogits.fits(model)
