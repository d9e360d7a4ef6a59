"""Any detector teaches any detector by its boxes: all pairs of families run, or are refused."""

from __future__ import annotations

import pytest
import torch
from detectors import FAMILIES, skip_if_too_large
from region_batches import detector, images, sample

import mmkd_plugin

KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', teacher='detections')
QUICK = [
    ('Deformable DETR', 'FCOS'),
    ('Faster R-CNN', 'Deformable DETR'),
    ('Deformable DETR', 'Faster R-CNN'),
    ('Mask2Former', 'SOLO'),
    ('Faster R-CNN', 'Mask2Former'),
]


LEAST = 3  # of random teachers, as many have a box where a row of the student counts


def step(student, teacher) -> bool:
    """One step with KD, which must be finite, and so its gradients; detaches again.

    Returns:
        Whether the student was taught anything.
    """
    distiller = mmkd_plugin.attach(student, teacher, [dict(KD, name='kd')])
    truth = sample(boxes=[(8, 8, 40, 40)], labels=[1], size=(64, 64), canvas=(64, 64))
    if type(student).__name__ == 'RTMDet':
        del truth.gt_instances.masks
    inputs = images([truth])
    if type(student).__name__ == 'YOLOX':  # whose images are pixels of 0 to 255
        inputs = (40 * inputs + 120).clamp(0, 255)
    losses = student.train()(inputs, [truth], mode='loss')
    distiller.raise_if_not_finite()
    student.zero_grad()
    losses['loss_kd'].backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert losses['loss_kd'] >= 0 and all(g.isfinite().all() for g in grads)
    mmkd_plugin.detach(student)
    taught = bool(losses['loss_kd'] > 0)
    assert taught is any(bool(g.any()) for g in grads)
    return taught


@pytest.mark.parametrize(('teacher', 'student'), QUICK)
def test_some_pairs_make_a_step(teacher, student):
    pair = detector(student), detector(teacher, width=32, seed=1)
    torch.manual_seed(0)
    assert step(*pair)


@pytest.fixture(scope='module')
def teachers():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize('student', FAMILIES)
def test_every_family_learns_from_every_other(student, teachers):
    skip_if_too_large(student)
    pupil, taught = detector(student), 0
    for family in FAMILIES:
        if family == 'DINO':
            skip_if_too_large(family)
        if family not in teachers:
            teachers[family] = detector(family, width=32, seed=1)
        torch.manual_seed(0)
        taught += step(pupil, teachers[family])
    assert taught >= LEAST
