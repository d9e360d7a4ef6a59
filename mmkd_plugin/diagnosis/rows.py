"""Both models on the rows of a term: who is right where the student's assigner wants a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..views import Predictions


@dataclass
class RowCounts:
    """Sums over rows that count and have a class.

    Attributes:
        positives: how many there are.
        teacher: on how many the teacher says the class.
        student: the same of the student.
        both: where both do.
        teacher_p: sum of the teacher's probabilities of that class.
        on: sum of the teacher's scores on these rows.
        all: sum of the teacher's scores on all rows that count.
    """

    positives: float = 0.0
    teacher: float = 0.0
    student: float = 0.0
    both: float = 0.0
    teacher_p: float = 0.0
    on: float = 0.0
    all: float = 0.0

    def add(self, other: RowCounts) -> None:
        """Adds those of another step."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def listen(term: Any) -> tuple[list, list]:
    """What the views of a term read, appended step by step; the caller empties the lists.

    Returns:
        Lists of the student's and of the teacher's reads.
    """
    own, theirs = term.student.read, term.teacher.read
    heard: tuple[list, list] = [], []

    def read_student(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        heard[0].append(found)
        return found

    def read_teacher(*args: Any, **kwargs: Any) -> Any:
        found = theirs(*args, **kwargs)
        heard[1].append(found)
        return found

    term.student.read, term.teacher.read = read_student, read_teacher
    return heard


def unlisten(term: Any) -> None:
    """Ends :func:`listen`."""
    for view in (term.student, term.teacher):
        vars(view).pop('read', None)


def count_rows(
    student: Predictions, teacher: Predictions, columns: tuple[Tensor, Tensor] | None = None
) -> RowCounts:
    """Positives, and both networks' answers there; nothing if the head tells no labels.

    Args:
        student: its rows of one head.
        teacher: the teacher's rows, in their order.
        columns: of student and teacher that mean the same classes; None for all. Rows of other
            classes are left out.
    """
    counts = RowCounts()
    for s, t in zip(student.levels, teacher.levels):
        if s.labels is None:
            return RowCounts()
        counted = torch.ones_like(s.labels, dtype=torch.bool)
        for mask in (s.valid, t.valid, None if s.label_weights is None else s.label_weights > 0):
            counted = counted if mask is None else counted & mask
        positive = counted & (s.labels >= 0) & (s.labels < student.num_classes)
        said = _probabilities(teacher, t.logits)
        logits = {'teacher': t.logits, 'student': s.logits}
        wanted = {'teacher': s.labels, 'student': s.labels}
        if columns is not None:
            names = _renaming(columns, student, s.labels)
            positive = positive & (names >= 0)
            wanted['teacher'] = names
        score = said.amax(-1) if t.score is None else t.score
        if t.score is None and t.quality is not None:
            score = score * t.quality.sigmoid()
        counts.positives += int(positive.sum())
        # argmax over all columns: to call an object background is a mistake, too
        right = {
            role: logits[role][positive].argmax(-1) == wanted[role][positive] for role in logits
        }
        counts.teacher += int(right['teacher'].sum())
        counts.student += int(right['student'].sum())
        counts.both += int((right['teacher'] & right['student']).sum())
        picked = said[positive].gather(-1, wanted['teacher'][positive][:, None])
        counts.teacher_p += float(picked.sum())
        counts.on += float(score[positive].sum())
        counts.all += float(score[counted].sum())
    return counts


def _renaming(columns: tuple[Tensor, Tensor], student: Predictions, labels: Tensor) -> Tensor:
    """The teacher's column for each label, or -1."""
    names = torch.full((student.num_classes + 2,), -1, dtype=torch.long, device=labels.device)
    names[columns[0]] = columns[1]
    return names[labels.clamp(0, student.num_classes)]


def _probabilities(predictions: Predictions, logits: Tensor) -> Tensor:
    """Of the foreground classes, (..., num_classes)."""
    soft = logits.softmax(-1) if predictions.activation == 'softmax' else logits.sigmoid()
    return soft[..., : predictions.num_classes]
