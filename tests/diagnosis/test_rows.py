"""Who is right on the rows of a term."""

from __future__ import annotations

import pytest
import torch

from mmkd_plugin.diagnosis.rows import RowCounts, count_rows
from mmkd_plugin.views.predictions import Level, Predictions


def predictions(logits: list, **extras) -> Predictions:
    level = Level(torch.tensor(logits)[None, :, None], **extras)
    return Predictions('bbox_head', 'roi', [level], 'softmax', num_classes=2, background=True)


def test_teacher_is_judged_on_counted_positives_only():
    labels = torch.tensor([0, 1, 0, 2, 1])[None, :, None]
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])[None, :, None]  # the third is ignored
    sure, unsure = 9.0, 0.0
    teacher = predictions(
        [
            [sure, 0, 0],  # right
            [0, 0, sure],  # calls a digit background
            [0, sure, 0],  # wrong, but ignored
            [0, 0, sure],  # background it is
            [0, sure, 0],  # right
        ]
    )
    student = predictions(
        [[unsure, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]],
        labels=labels,
        label_weights=weights,
    )
    found = count_rows(student, teacher)
    assert found.positives == 3
    assert found.teacher == 2 and found.student == 1
    p = torch.tensor([[sure, 0, 0]]).softmax(-1)[0]
    assert found.teacher_p == pytest.approx(float(2 * p[0] + p[1]))
    # Its attention: the best foreground class, on three positives and one counted background.
    assert found.on == pytest.approx(float(2 * p[0] + p[1]))
    assert found.all == pytest.approx(float(2 * p[0] + 2 * p[1]))


def test_a_head_without_labels_is_not_judged():
    both = predictions([[1.0, 0.0, 0.0]])
    assert count_rows(both, both) == RowCounts()


def test_classes_that_are_shared_go_by_their_columns():
    """The student's classes 0 and 1 are the teacher's 1 and 0; background has no partner."""
    labels = torch.tensor([0, 1, 1, 2])[None, :, None]
    teacher = predictions([[0.0, 9, 0], [9.0, 0, 0], [0.0, 9, 0], [0.0, 0, 9]])
    student = predictions([[9.0, 0, 0], [9.0, 0, 0], [0.0, 9, 0], [0.0, 0, 9]], labels=labels)
    found = count_rows(student, teacher, (torch.tensor([0, 1]), torch.tensor([1, 0])))
    assert (found.positives, found.teacher, found.student, found.both) == (3, 2, 2, 1)
