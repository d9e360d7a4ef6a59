"""Whether the teacher is better than the student, on the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .findings import Report
from .paired import Difference, difference
from .readings import Reading, all_objects, image_scores

EQUAL = 0.02  # difference of mean scores, and of shares, below which two models are alike


def check_better(
    teacher: Sequence[Reading], student: Sequence[Reading], of_classes: bool, report: Report
) -> Difference | None:
    """Adds the finding for a teacher that is worse than the student, or just as good.

    Returns:
        The difference of the scores on each image; None without readings of both.
    """
    if not teacher or len(teacher) != len(student):
        return None
    gain = difference(image_scores(teacher, of_classes) - image_scores(student, of_classes))
    loss = difference(image_scores(student, of_classes) - image_scores(teacher, of_classes))
    own, theirs = all_objects(student), all_objects(teacher)
    evidence = dict(
        gain=gain.mean,
        error=gain.error,
        p=min(gain.p, loss.p),
        images=gain.count,
        teacher_right=_share(theirs.right),
        student_right=_share(own.right),
        teacher_iou=_mean(theirs.iou),
        student_iou=_mean(own.iou),
    )
    gap = evidence['teacher_right'] - evidence['student_right']
    if loss.p < 0.05 and loss.mean > 0:
        report.add('weak-teacher', 'teacher', evidence, 'teacher=dict(config=..., checkpoint=...)')
    elif abs(gain.mean) < EQUAL and gap < EQUAL:
        report.add(
            'nothing-to-learn', 'teacher', evidence, 'teacher=dict(config=..., checkpoint=...)'
        )
    return gain


def check_equal(teacher: nn.Module, student: nn.Module, report: Report) -> None:
    """Adds the finding for a student that begins as its teacher, tensor by tensor."""
    own, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    same = own.keys() == theirs.keys() and all(torch.equal(own[n], theirs[n]) for n in own)
    if same and own and not report.has('nothing-to-learn'):
        evidence = dict(equal_tensors=len(own), of=len(theirs))
        report.add(
            'nothing-to-learn', 'teacher', evidence, 'teacher=dict(config=..., checkpoint=...)'
        )


def own_metrics(readings: Sequence[Reading]) -> dict[str, float]:
    """Numbers that every model has: shares of objects that are right and found, and their IoU."""
    objects = all_objects(readings)
    if not len(objects.label):
        return {}
    found = dict(
        right=_share(objects.right), found=_share(objects.said >= 0), iou=_mean(objects.iou)
    )
    scores = image_scores(readings)
    found['score'] = _mean(scores)
    return {f'objects/{key}': value for key, value in found.items() if value == value}


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float('nan')
