"""Masks across families: what a teacher masks, on the RoIs, cells and positions of a student."""

from __future__ import annotations

import pytest
import torch
from region_batches import CLASSES, detector, empty, images, sample

import mmkd_plugin
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.views import make_view
from mmkd_plugin.views.assignment import assign_objects
from mmkd_plugin.views.detections_answers import AnswerReader, MaskQueryReader
from mmkd_plugin.views.detections_found import Candidates
from mmkd_plugin.views.detections_masks import _at

SIZE = 96
STUDENTS = ['Mask R-CNN', 'SOLO', 'CondInst']
each_student = pytest.mark.parametrize('student', STUDENTS)
TERM = dict(
    loss=dict(type='KDLoss', temperature=1.0),
    student='mask_logits',
    teacher='detections',
    name='masks',
)
# The right half of the first object of `sample`, which has the left one; both of the second.
RIGHT = (30, 12, 50, 60)


def masks_of(*boxes) -> torch.Tensor:
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    return masks


def plant(monkeypatch, masks, boxes=None, scores=None, labels=None, reader=AnswerReader):
    """Makes every teacher find these masks in each image."""
    count = len(masks)
    boxes = torch.zeros(count, 4) + torch.tensor([2.0, 2, 90, 90]) if boxes is None else boxes
    logits = torch.full((count, CLASSES), -6.0)
    scores = torch.full((count,), 0.9) if scores is None else torch.tensor(scores)
    logits[:, 1] = scores.logit()

    def read(self, recorder, data_samples, shared):
        assert self.masks
        zero = torch.zeros(())
        return [Candidates(boxes.clone(), logits.clone(), None, zero, masks) for _ in data_samples]

    monkeypatch.setattr(reader, 'read', read)


class Seen:
    """Keeps what a term compared."""

    def maps(self, *_):
        raise AssertionError

    def rows(self, _term, student, teacher, _columns):
        self.pairs = list(zip(student.levels, teacher.levels))


def step(student, teacher, samples, **term):
    distiller = mmkd_plugin.attach(student, teacher, [dict(TERM, **term)], probe_size=(SIZE, SIZE))
    seen = distiller.terms[0].observer = Seen()
    torch.manual_seed(0)
    losses = student.train()(images(samples), samples, mode='loss')
    distiller.raise_if_not_finite()
    student.zero_grad()
    losses['loss_masks'].backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
    return losses, seen.pairs, sum(float(g.abs().sum()) for g in grads)


def truths():
    """Masks of both objects of `sample`: the left halves of their boxes."""
    return masks_of((10, 12, 30, 60), (40, 30, 65, 80))


# -- where a mask is looked at ------------------------------------------------------------------


def test_a_window_of_a_mask_is_its_part_of_the_image():
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 10:30, 20:40] = True
    windows = torch.tensor([[20.0, 10, 40, 30], [0, 0, 60, 40], [30, 10, 50, 30]])
    found = _at(mask, torch.zeros(3, dtype=torch.long), windows, (4, 6))
    assert found.shape == (3, 4, 6) and found[0].eq(1).all()
    assert found[1].gt(0.5).nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert found[2].eq(torch.tensor([1.0, 1, 1, 0, 0, 0])).all()


def test_bytes_and_probabilities_are_the_same_mask():
    p = torch.rand(2, 8, 8)
    windows = torch.tensor([[0.0, 0, 8, 8], [1, 1, 5, 5]])
    index = torch.tensor([1, 0])
    as_bytes = (p * 255).to(torch.uint8)
    found = _at(as_bytes, index, windows, (8, 8)), _at(p, index, windows, (8, 8))
    torch.testing.assert_close(*found, atol=1 / 255, rtol=0)
    torch.testing.assert_close(found[1][0], p[1])
    assert _at(p, index[:0], windows[:0], (8, 8)).shape == (0, 8, 8)


def test_detections_that_hardly_overlap_an_object_may_be_left_out():
    truth, scores = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0.9, 0.1])
    detections = torch.tensor([[5.0, 0, 15, 10], [0, 0, 10, 6]])
    assert assign_objects(truth, detections, scores).tolist() == [0]
    assert assign_objects(truth, detections, scores, least=0.5).tolist() == [1]


# -- what is taught -------------------------------------------------------------------------------


@each_student
def test_a_perfect_teachers_masks_are_the_students_own_targets(student, monkeypatch):
    plant(monkeypatch, truths())
    pupil, teacher = detector(student), detector('SOLO', width=32, seed=1)
    samples = [sample(), empty(), sample()]
    losses, pairs, size = step(pupil, teacher, samples)
    agree = count = 0
    for own, theirs in pairs:
        assert theirs.logits.shape == own.logits.shape
        assert not theirs.valid[own.images == 1].any()
        rows = theirs.valid.squeeze(-1)
        inside = (theirs.logits[..., 0, 0] > 0)[rows]
        agree += int((inside == (own.labels.squeeze(-1) == 0)[rows]).sum())
        count += len(inside)
    assert count > 100 and agree > 0.95 * count, 'but for rims'
    assert losses['loss_masks'] > 0 and losses['masks_rows'] == count and size > 0


@each_student
def test_of_two_masks_of_an_object_the_surer_teaches(student, monkeypatch):
    pupil, teacher = detector(student), detector('SOLO', width=32, seed=1)
    first, _ = truths()
    worse = first.clone()
    worse[12:20] = False
    shares = []
    for scores in ([0.9, 0.3], [0.3, 0.9]):
        plant(monkeypatch, torch.stack([first, worse]), scores=scores)
        _, pairs, _ = step(pupil, teacher, [sample()])
        mmkd_plugin.detach(pupil)
        rows = torch.cat([theirs.logits[theirs.valid.unsqueeze(-1)] for _, theirs in pairs])
        shares.append((rows > 0).float().mean())
    assert shares[0] > 1.05 * shares[1]


@each_student
def test_the_order_of_detections_does_not_matter(student, monkeypatch):
    masks = torch.cat([truths(), masks_of(RIGHT, (0, 0, 20, 20))])
    scores = torch.tensor([0.8, 0.6, 0.7, 0.9])
    pupil, teacher = detector(student), detector('SOLO', width=32, seed=1)
    values = []
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        plant(monkeypatch, masks[order], scores=scores[order].tolist())
        losses, _, size = step(pupil, teacher, [sample(), sample()])
        mmkd_plugin.detach(pupil)
        values.append((float(losses['loss_masks'].detach()), size))
    assert values[0][0] > 0 and values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-6)


@each_student
def test_masks_of_a_class_that_the_teacher_does_not_know_are_not_taught(student, monkeypatch):
    plant(monkeypatch, truths())
    pupil, model = detector(student), detector('SOLO', width=32, seed=1)
    # Objects of class 1 and 3.
    _, pairs, _ = step(pupil, Teacher(model, class_map=[0, 1, 2, -1]), [sample()])
    rows = sum(int(theirs.valid.sum()) for _, theirs in pairs)
    mmkd_plugin.detach(pupil)
    _, pairs, _ = step(pupil, Teacher(model, class_map=[0, 1, 2, 3]), [sample()])
    assert 0 < rows < sum(int(theirs.valid.sum()) for _, theirs in pairs)


@each_student
@pytest.mark.parametrize('case', ['no detection', 'no truth', 'crowds', 'elsewhere'])
def test_nothing_to_teach_is_zero_with_a_finite_gradient(student, case, monkeypatch):
    masks = dict([('no detection', truths()[:0]), ('elsewhere', masks_of((70, 2, 95, 20)))])
    plant(monkeypatch, masks.get(case, truths()))
    samples = dict([('no truth', [empty(), empty()]), ('crowds', [empty(crowd=[(0, 0, 96, 96)])])])
    pupil, teacher = detector(student), detector('SOLO', width=32, seed=1)
    losses, _, size = step(pupil, teacher, samples.get(case, [sample(), sample()]))
    assert losses['loss_masks'] == 0 and losses['masks_rows'] == 0 and size == 0


# -- how masks are read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [('SOLO', 'Mask R-CNN'), ('Mask R-CNN', 'SOLO'), ('CondInst', 'Mask2Former')],
)
def test_real_teachers_are_read_once_and_left_as_they_were(student, teacher):
    pupil, model = detector(student), detector(teacher, width=32, seed=1)
    before = getattr(getattr(model, 'roi_head', None), 'test_cfg', None)
    before = None if before is None else dict(before)
    distiller = mmkd_plugin.attach(pupil, model, [TERM], probe_size=(SIZE, SIZE))
    (term,) = distiller.terms
    assert isinstance(
        term.teacher.reader, MaskQueryReader if teacher == 'Mask2Former' else AnswerReader
    )
    found, original = [], term.teacher.detect
    term.teacher.detect = lambda *args: found.append(original(*args)) or found[-1]
    samples = [sample(), empty()]
    losses = pupil.train()(images(samples), samples, mode='loss')
    distiller.raise_if_not_finite()
    assert losses['loss_masks'] >= 0 and len(found) == 1
    for one in found[0]:
        assert one.masks.shape == (len(one), SIZE, SIZE)
        kind = {'SOLO': torch.bool, 'Mask R-CNN': torch.uint8, 'Mask2Former': torch.float32}
        assert one.masks.dtype == kind[teacher]
    assert before is None or dict(model.roi_head.test_cfg) == before


def test_terms_without_masks_keep_none():
    for family in ('SOLO', 'Mask2Former'):
        assert not make_view('detections', detector(family)).reader.masks


def test_a_teacher_without_masks_is_refused_before_training():
    with pytest.raises(TapError, match='detections of FasterRCNN have none.*masks objects'):
        step(detector('SOLO'), detector('Faster R-CNN', seed=1), [sample()])
    with pytest.raises(TapError, match='would contrast copies'):
        step(
            detector('SOLO'),
            detector('Mask R-CNN', seed=1),
            [sample()],
            loss=dict(type='CKDLoss'),
        )
