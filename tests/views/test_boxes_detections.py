"""Boxes taught by what a teacher of another kind detects: which of them, and that it is right."""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import IMAGE
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
from mmkd_plugin.views import PairContext, make_view
from mmkd_plugin.views.assignment import assign_objects
from mmkd_plugin.views.detections_found import Candidates
from mmkd_plugin.views.detections_readers import PositionReader

STUDENTS = ['FCOS', 'Faster R-CNN', 'Cascade R-CNN', 'Deformable DETR']
each_student = pytest.mark.parametrize('student', STUDENTS)
each_gate = pytest.mark.parametrize('when', ['teacher_closer', 'always'])
FAR = torch.tensor([[0.0, 0, 9, 11], [80.0, 2, 95, 9]])  # from both objects


def planted(monkeypatch, boxes, logits):
    """Makes every dense teacher see these boxes, with these logits, in each image."""

    def read(self, recorder, data_samples, shared):
        zero = torch.zeros(())
        return [Candidates(boxes.clone(), logits.clone(), None, zero) for _ in data_samples]

    monkeypatch.setattr(PositionReader, 'read', read)


def sure(count: int) -> torch.Tensor:
    """Logits (M, C) of detections, the first the surest."""
    return torch.linspace(2, -1, count)[:, None] * torch.ones(CLASSES) - torch.arange(CLASSES)


def attached(student, teacher, term=None, **loss):
    made = dict(loss=dict(type='BoxDistillLoss', **loss), student='boxes', teacher='detections')
    made = dict(made, name='boxes', **(term or {}))
    distiller = mmkd_plugin.attach(student, teacher, [made], probe_size=(IMAGE, IMAGE))
    for module in student.train().modules():  # as in the teacher, which does not train
        if isinstance(module, (_BatchNorm, nn.Dropout, nn.MultiheadAttention)):
            module.eval()
    return distiller


def step(student, samples, distiller=None):
    torch.manual_seed(0)  # RoI samplers draw
    losses = student(images(samples), samples, mode='loss')
    if distiller is not None:
        distiller.raise_if_not_finite()
    parameters = [p for p in student.parameters() if p.requires_grad]
    found = torch.autograd.grad(losses['loss_boxes'], parameters, allow_unused=True)
    return losses, [g for g in found if g is not None]


def read(student, teacher, samples, needs=()):
    own, theirs = make_view('boxes', student, needs), make_view('detections', teacher)
    theirs.check_pair(own, (student, teacher))
    predictions, _ = student_step(student, own, samples)
    return predictions, teacher_step(teacher, theirs, samples, predictions)


def test_an_object_is_taught_by_the_detection_that_is_sure_and_near():
    truth = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]])
    detections = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [45, 45, 60, 60]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    assert assign_objects(truth, detections, scores).tolist() == [1, 2]
    assert assign_objects(truth, detections[:2], scores[:2]).tolist() == [1, 2], 'none overlaps'
    assert assign_objects(truth, detections[:0], scores[:0]).tolist() == [0, 0]
    assert assign_objects(truth[:0], detections, scores).tolist() == []


@each_student
def test_rows_with_an_object_get_its_detection(student, monkeypatch):
    boxes = torch.tensor([*BOXES, (2.0, 2, 20, 20)]) + torch.tensor([1.0, -2, 3, 0])
    logits = sure(3)
    planted(monkeypatch, boxes, logits)
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    samples = [empty(), sample()]
    own, taught = read(pupil, teacher, samples, ('truth', 'scores'))
    assert len(own) == len(taught)
    seen = 0
    for s, t in zip(own, taught):
        assert (t.spec.kind, t.spec.activation, t.spec.columns) == (s.spec.kind, 'none', 4)
        for mine, theirs in zip(s.levels, t.levels):
            assert theirs.logits.shape == mine.logits.shape
            for i, box in enumerate(BOXES):
                rows = (mine.labels == 0) & (mine.truth == torch.tensor(box)).all(-1)
                seen += int(rows.sum())
                assert theirs.valid[rows].all()
                expected = boxes[i].expand(int(rows.sum()), 4)
                torch.testing.assert_close(theirs.logits[rows], expected)
                torch.testing.assert_close(
                    theirs.score[rows], logits[i].max().sigmoid().expand(len(expected))
                )
    assert seen >= 2


@pytest.mark.parametrize('student', ['FCOS', 'Deformable DETR'])
def test_the_value_is_the_mean_over_rows_with_an_object(student, monkeypatch):
    boxes, logits = torch.tensor(BOXES), sure(2)  # a perfect teacher: every gate is open
    planted(monkeypatch, boxes, logits)
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    attached(pupil, teacher)
    samples = [sample(), empty()]
    losses, gradients = step(pupil, samples)
    assert losses['boxes_closer'] == 1 and sum(g.abs().sum() for g in gradients) > 0
    mmkd_plugin.detach(pupil)
    own, _ = student_step(pupil, make_view('boxes', pupil, ('truth',)), samples)
    values = []
    for head in own:
        rows = [(x.logits[x.labels == 0], x.truth[x.labels == 0]) for x in head.levels]
        mine, truth = (torch.cat(x) for x in zip(*rows))
        score = torch.where((truth == boxes[0]).all(1), *logits.amax(1).sigmoid())
        values.append((F.giou_loss(mine, truth, reduction='none') * score).mean())
    torch.testing.assert_close(losses['loss_boxes'], torch.stack(values).mean())


@each_student
def test_detections_further_off_than_the_student_teach_exactly_nothing(student, monkeypatch):
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    planted(monkeypatch, FAR, sure(2))
    distiller = attached(pupil, teacher)
    losses, gradients = step(pupil, [sample(), sample()], distiller)
    assert losses['loss_boxes'] == 0 and all(g.eq(0).all() for g in gradients)


def test_a_student_that_detects_its_own_boxes_learns_nothing_from_itself():
    """Each query of the last decoder layer is its own detection."""
    pupil = detector('Deformable DETR')
    for module in pupil.modules():
        if isinstance(module, (_BatchNorm, nn.Dropout, nn.MultiheadAttention)):
            module.eval()
    own, taught = read(pupil, copy.deepcopy(pupil), [sample(), sample()])
    (mine,), (theirs,) = own[-1].levels, taught[-1].levels
    assert theirs.valid.any()
    limit = torch.tensor([float(IMAGE)])
    inside = mine.logits[theirs.valid].clamp(min=0).minimum(limit)  # as detections are
    torch.testing.assert_close(inside, theirs.logits[theirs.valid])


@each_student
@each_gate
def test_the_order_of_detections_does_not_matter(student, when, monkeypatch):
    boxes = torch.cat([torch.tensor(BOXES) + 2, FAR, torch.tensor([[30.0, 20, 70, 80]])])
    logits, values = sure(len(boxes)), []
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    attached(pupil, teacher, when=when)
    for order in (torch.arange(5), torch.tensor([3, 1, 4, 0, 2])):
        planted(monkeypatch, boxes[order], logits[order])
        losses, gradients = step(pupil, [sample(), sample()])
        values.append((losses['loss_boxes'], *gradients))
    assert values[0][0] > 0
    for first, second in zip(*values):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


@each_student
@each_gate
@pytest.mark.parametrize('case', ['no detection', 'no truth', 'crowds', 'one image is empty'])
def test_nothing_to_teach_is_zero_with_a_finite_gradient(student, when, case, monkeypatch):
    boxes, logits = torch.tensor(BOXES), sure(2)
    if case == 'no detection':
        boxes, logits = boxes[:0], logits[:0]
    planted(monkeypatch, boxes, logits)
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    select = dict(select='positive') if when == 'always' and 'R-CNN' not in student else {}
    distiller = attached(pupil, teacher, select, when=when)
    samples = {
        'no detection': [sample(), sample()],
        'no truth': [empty(), empty()],
        'crowds': [empty(crowd=[(0, 0, 96, 96)])] * 2,
        'one image is empty': [sample(), empty()],
    }[case]
    losses, gradients = step(pupil, samples, distiller)
    assert gradients and all(g.isfinite().all() for g in gradients)
    if case == 'one image is empty':
        assert losses['loss_boxes'] > 0 and losses['boxes_rows'] > 0
    elif case == 'no detection' or when == 'teacher_closer' or select:
        assert losses['loss_boxes'] == 0 and losses['boxes_rows'] == 0
        assert all(g.eq(0).all() for g in gradients)


@each_student
@pytest.mark.parametrize('select', ['all', dict(by='teacher_topk', k=50), 'score_weighted'])
def test_no_selection_measures_rows_without_an_object(student, select, monkeypatch):
    planted(monkeypatch, torch.tensor(BOXES), sure(2))
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    attached(pupil, teacher, dict(select=select))
    nothing, _ = step(pupil, [empty(), empty()])
    assert nothing['loss_boxes'] == 0 and nothing['boxes_rows'] == 0
    something, _ = step(pupil, [sample(), empty()])
    assert something['loss_boxes'] > 0


@pytest.mark.parametrize('student', ['FCOS', 'Faster R-CNN', 'Deformable DETR'])
def test_classes_that_the_student_lacks_take_no_place_from_others(student, monkeypatch):
    """The surest is a class of the teacher alone, and overlaps the better one by an NMS."""
    class_map = [6, -1, 0, 2]
    boxes = torch.tensor([BOXES[0], BOXES[0], BOXES[1]]) + torch.tensor([[1.0], [0], [0]])
    logits = torch.full((3, 7), -4.0)
    logits[0, 1], logits[1, 6], logits[2, 0] = 3.0, 1.0, 0.5
    planted(monkeypatch, boxes, logits)
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1, classes=7)
    view = make_view('boxes', pupil, ('truth',)), make_view('detections', teacher)
    view[1].check_pair(view[0], (pupil, teacher), class_map=class_map)
    samples = [sample(), sample()]
    own, _ = student_step(pupil, view[0], samples)
    pair = PairContext(class_map=torch.tensor(class_map), images=2)
    taught = teacher_step(teacher, view[1], samples, own, pair=pair)
    for s, t in zip(own, taught):
        for mine, theirs in zip(s.levels, t.levels):
            of_first = (mine.labels == 0) & (mine.truth == boxes[1]).all(-1)
            assert (theirs.logits[of_first] == boxes[1]).all()


@each_student
def test_a_nan_of_the_teacher_is_reported(student):
    pupil, teacher = detector(student), detector('FCOS', width=32, seed=1)
    with torch.no_grad():
        next(teacher.neck.parameters()).fill_(torch.nan)
    distiller = attached(pupil, teacher)
    with pytest.raises(Exception, match='teacher'):
        step(pupil, [sample(), sample()], distiller)


def test_a_head_that_names_no_objects_is_refused_before_training_or_taught_without():
    def free(config):
        config.bbox_head.type = 'FreeAnchorRetinaHead'
        config.bbox_head.loss_bbox = dict(type='SmoothL1Loss', beta=0.11)

    pupil, teacher = detector('RetinaNet', edit=free), detector('Faster R-CNN', width=32, seed=1)
    for term in (
        dict(loss=dict(type='BoxDistillLoss')),
        dict(loss=dict(type='KDLoss'), student='cls_logits'),  # its rows are the positives
    ):
        with pytest.raises(TapError, match='needs labels.* name no object for a prediction'):
            attached(copy.deepcopy(pupil), teacher, term)
    attached(pupil, teacher, when='always')
    losses, gradients = step(pupil, [sample()])
    assert losses['loss_boxes'] > 0 and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize('student', ['FCOS', 'Faster R-CNN', 'Deformable DETR'])
def test_a_student_learns_boxes_from_detections_alone(student, monkeypatch):
    """The term alone leads its boxes to those of a perfect teacher."""
    planted(monkeypatch, torch.tensor(BOXES), sure(2) + 4)
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    attached(pupil, teacher, kind='both')
    optimizer = torch.optim.Adam(pupil.parameters(), lr=1e-3)
    samples, seen = [sample()], []
    for _ in range(20):
        torch.manual_seed(0)
        losses = pupil(images(samples), samples, mode='loss')
        seen.append(losses['loss_boxes'].item())
        optimizer.zero_grad()
        losses['loss_boxes'].backward()
        optimizer.step()
    assert min(seen[-5:]) < 0.6 * seen[0]


def test_pairs_that_do_not_fit_are_refused_before_training():
    box, gfl = dict(type='BoxDistillLoss'), detector('GFL')

    def attach(own, other, **term):
        term = dict(dict(loss=box, student='boxes', teacher='detections'), **term)
        mmkd_plugin.attach(own, other, [term], probe_size=(IMAGE, IMAGE))

    with pytest.raises(TapError, match="no view 'boxes' fits SOLO"):
        attach(detector('SOLO'), gfl)
    with pytest.raises(TapError, match="compares boxes, but student='cls_logits'"):
        attach(detector('FCOS'), gfl, student='cls_logits')
    with pytest.raises(TapError, match="compares logits, but student='boxes'"):
        attach(detector('FCOS'), gfl, loss=dict(type='KDLoss'))
    with pytest.raises(TapError, match="carry classes, boxes and masks.*'boxes' or 'mask_logits'"):
        attach(gfl, detector('Faster R-CNN'), student='dfl_logits', loss=dict(type='KDLoss'))
    with pytest.raises(ValueError, match='student .* detections|teacher'):
        attach(detector('FCOS'), gfl, student='detections')
