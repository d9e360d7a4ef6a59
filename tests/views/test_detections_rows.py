"""Detections of a teacher of any kind, given to RoIs, queries, cells and softmax heads."""

from __future__ import annotations

import copy

import pytest
import torch
from region_batches import CLASSES, detector, empty, images, sample, student_step, teacher_step
from torch import nn
from torch.nn import functional as nnf

import mmkd_plugin
from mmkd_plugin.views import HeadSpec, Predictions, make_view
from mmkd_plugin.views.assignment import assign, assign_regions
from mmkd_plugin.views.class_forms import in_form, log_odds
from mmkd_plugin.views.detections_found import Candidates, TeacherDetections, best_of
from mmkd_plugin.views.detections_readers import PositionReader, QueryReader
from mmkd_plugin.views.detections_rows import credible

KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', teacher='detections')
SIGMOID = HeadSpec('teacher', 'dense', 'sigmoid', CLASSES)
SOFTMAX = HeadSpec('teacher', 'roi', 'softmax', CLASSES, background=True)


def planted(monkeypatch, boxes, logits, reader=PositionReader):
    """Makes every teacher of a kind see these boxes, with these logits, in each image."""

    def read(self, recorder, data_samples, shared):
        zero = torch.zeros(())
        return [Candidates(boxes.clone(), logits.clone(), None, zero) for _ in data_samples]

    monkeypatch.setattr(reader, 'read', read)


def read(student, teacher, samples):
    own, theirs = make_view('cls_logits', student), make_view('detections', teacher)
    predictions, _ = student_step(student, own, samples)
    return predictions, teacher_step(teacher, theirs, samples, predictions)


# -- forms of class vectors --------------------------------------------------------------------


def test_equal_forms_are_left_alone():
    z = torch.randn(3, CLASSES + 1)
    assert in_form(z, SOFTMAX, 'softmax', True) is z
    assert in_form(z[:, :CLASSES], SIGMOID, 'sigmoid', False) is not None


def test_a_softmax_of_sigmoids_is_the_class_if_at_most_one_is_there():
    z = torch.tensor([[0.3, -1.2, 2.0, -4.0]])
    p = z.sigmoid()
    none = (1 - p).prod()
    joint = torch.cat([p / (1 - p) * none, none[None, None]], dim=1)  # exactly one, or none
    found = in_form(z, SIGMOID, 'softmax', True).softmax(1)
    torch.testing.assert_close(found, joint / joint.sum())


def test_the_background_beside_sigmoids_is_that_no_class_is_there():
    z = torch.tensor([[0.3, -1.2, 2.0, -4.0], [-60.0, -60.0, -60.0, -60.0]])
    found = in_form(z, SIGMOID, 'sigmoid', True)
    torch.testing.assert_close(found[:, :CLASSES], z)
    torch.testing.assert_close(found[:, CLASSES].sigmoid(), (1 - z.sigmoid()).prod(1))
    assert found.isfinite().all()


def test_a_softmax_becomes_sigmoids_exactly_with_and_without_background():
    z = torch.randn(5, CLASSES + 1)
    torch.testing.assert_close(in_form(z, SOFTMAX, 'sigmoid', True), log_odds(z))
    torch.testing.assert_close(in_form(z, SOFTMAX, 'sigmoid', False), log_odds(z)[:, :CLASSES])
    dropped = in_form(z, SOFTMAX, 'softmax', False).softmax(1)
    torch.testing.assert_close(dropped, nnf.normalize(z.softmax(1)[:, :CLASSES], p=1))


# -- who is taught by which --------------------------------------------------------------------


def test_a_place_without_a_box_learns_from_the_smallest():
    detections = torch.tensor([[0.0, 0, 20, 20], [0, 0, 10, 10], [30, 30, 40, 40]])
    centers = torch.tensor([[5.0, 5], [15, 15], [25, 25]])
    assert assign(centers, None, detections).tolist() == [[1], [0], [3]]
    assert assign(centers, None, detections[:0]).tolist() == [[0]] * 3


def test_a_region_learns_from_its_images_detection_that_overlaps_most():
    detections = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 12, 10]]), torch.zeros(0, 4)]
    rois = torch.tensor([[0.0, 0, 0, 12, 11], [0, 8, 8, 20, 20], [1, 0, 0, 10, 10]])
    assert assign_regions(rois, detections).tolist() == [1, 2, 0]


def test_regions_of_a_cascade_are_given_the_class_in_their_form(monkeypatch):
    pupil, teacher = detector('Cascade R-CNN'), detector('FCOS', width=32, seed=1)
    boxes, logits = torch.tensor([[10.0, 12.0, 50.0, 60.0]]), torch.tensor([[-2.0, 3.0, 0.0, -1.0]])
    planted(monkeypatch, boxes, logits)
    samples = [sample(), sample(boxes=[(10, 12, 50, 60)], labels=[1])]
    own, taught = read(pupil, teacher, samples)
    assert len(taught) == 3
    for s, t in zip(own, taught):
        (mine,), (theirs,) = s.levels, t.levels
        rois, valid = s.handover.rois, theirs.valid[0, :, 0]
        inner = torch.stack([assign_regions(rois, [boxes, boxes]) == 0]).squeeze(0)
        assert torch.equal(valid, inner) and valid.any() and not valid.all()
        assert torch.equal(theirs.images, mine.images)
        expected = torch.tensor([-2.0, 3.0, 0.0, -1.0, 0.0]).expand(int(valid.sum()), -1)
        torch.testing.assert_close(theirs.logits[0, valid, 0], expected)
        torch.testing.assert_close(
            theirs.boxes.decode()[0, valid, 0], boxes.expand(len(expected), 4)
        )


def test_a_detr_that_teaches_itself_has_nothing_to_say():
    """Each of its queries is its own detection, in the last layer of the decoder."""
    pupil = detector('Deformable DETR')
    for layer in pupil.modules():  # no dropout, and the norm of the teacher
        layer.train(bool(list(layer.children())))
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
    teacher, samples = copy.deepcopy(pupil), [sample(), sample()]
    own, taught = read(pupil, teacher, samples)
    (mine,), (theirs,) = own[-1].levels, taught[-1].levels
    assert theirs.valid.any()
    torch.testing.assert_close(mine.logits[theirs.valid], theirs.logits[theirs.valid])


def test_each_layers_queries_are_matched_to_detections_of_least_cost(monkeypatch):
    pupil, teacher = detector('Deformable DETR'), detector('FCOS', width=32, seed=1)
    boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [40.0, 30.0, 90.0, 80.0], [0, 0, 20, 20]])
    logits = torch.eye(CLASSES)[:3] * 6 - 3
    samples = [sample(), sample(crowd=[(0, 0, 22, 22)])]
    orders = (torch.arange(3), torch.tensor([2, 0, 1]))
    values = []
    for order in orders:
        planted(monkeypatch, boxes[order], logits[order])
        own, taught = read(pupil, teacher, samples)
        assert len(own) == len(taught) == 2
        for head in taught:
            (level,) = head.levels
            assert level.valid.sum((1, 2)).tolist() == [3, 2], 'the crowd is not taught'
            rows = level.logits[0][level.valid[0]]
            assert sorted(rows.argmax(1).tolist()) == [0, 1, 2], 'each detection once'
        values.append([head.levels[0].logits for head in taught])
    for first, second in zip(*values):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_the_truth_says_which_detections_are_in_question():
    boxes = torch.tensor([[10.0, 10, 20, 20], [50, 50, 90, 90]])
    found = TeacherDetections(boxes, torch.zeros(2, 4), torch.ones(2), (96, 96), torch.zeros(()))
    assert len(credible(found, sample())) == 2
    assert len(credible(found, sample(crowd=[(0, 0, 30, 30)]))) == 1
    assert len(credible(found, empty())) == 0


def test_a_detr_is_read_without_nms_and_its_best_queries_first():
    student, teacher = detector('FCOS'), detector('Deformable DETR', width=32, seed=1)
    view = make_view('detections', teacher)
    assert isinstance(view.reader, QueryReader) and view.reader.iou is None
    _, taught = read(student, teacher, [sample(), sample()])
    assert isinstance(taught[0], Predictions) and taught[0].levels[0].score.max() <= 1


def test_doubles_go_where_a_teacher_has_them():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 21, 20], [50, 50, 200, 90]])
    logits = torch.tensor([[2.0, -3, -3, -3], [1.0, -3, -3, -3], [-3, 0.0, -3, -3]])
    found = Candidates(boxes, logits, None, torch.zeros(()))
    assert len(best_of(found, SIGMOID, (96, 96))) == 3
    kept = best_of(found, SIGMOID, (96, 96), iou=0.5)
    assert kept.boxes.tolist() == [[0, 0, 20, 20], [50, 50, 96, 90]]
    torch.testing.assert_close(kept.scores, torch.tensor([2.0, 0.0]).sigmoid())


# -- what is nothing teaches nothing -----------------------------------------------------------


@pytest.mark.parametrize('student', ['Faster R-CNN', 'Deformable DETR', 'SOLO'])
@pytest.mark.parametrize('case', ['no detection', 'no truth', 'crowds'])
def test_nothing_to_teach_is_zero_with_a_finite_gradient(student, case, monkeypatch):
    pupil, teacher = detector(student), detector('FCOS', width=32, seed=1)
    boxes, logits = torch.tensor([[10.0, 12.0, 50.0, 60.0]]), torch.zeros(1, CLASSES)
    if case == 'no detection':
        boxes, logits = boxes[:0], logits[:0]
    planted(monkeypatch, boxes, logits)
    samples = {
        'no detection': [sample(), sample()],
        'no truth': [empty(), empty()],
        'crowds': [empty(crowd=[(0, 0, 96, 96)])] * 2,
    }[case]
    distiller = mmkd_plugin.attach(pupil, teacher, [dict(KD, name='kd')])
    losses = pupil.train()(images(samples), samples, mode='loss')
    distiller.raise_if_not_finite()
    assert losses['loss_kd'] == 0 and losses['kd_rows'] == 0
    losses['loss_kd'].backward()
    grads = [p.grad for p in pupil.parameters() if p.grad is not None]
    assert all((g == 0).all() for g in grads)
