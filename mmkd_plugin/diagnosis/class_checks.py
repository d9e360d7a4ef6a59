"""class-order and class-names: whether the teacher's classes are those of the student."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..class_map import UNKNOWN
from .findings import Report
from .readings import NOTHING, Objects

FEWEST = 3  # objects of a class, below which it says nothing
SHARE = 0.35  # of a class's objects that are called by another name, for it to be exchanged
ORDERED = 0.8  # of the answers that any choice of names can explain, explained by exchanged ones
P = 1e-4
_MOST_NAMES = 8  # in the evidence


def counts_of(objects: Objects) -> np.ndarray:
    """How often each true class is called what, (C, C)."""
    seen = objects.said != NOTHING
    size = int(max(objects.label.max(initial=0), objects.said.max(initial=0))) + 1
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (objects.label[seen], objects.said[seen]), 1)
    return counts


def best_renaming(objects: Objects) -> np.ndarray:
    """What each true class is called most often, (C,)."""
    counts = counts_of(objects)
    return np.where(counts.sum(1) > 0, counts.argmax(1), np.arange(len(counts)))


def exchanged(objects: Objects) -> dict[int, int]:
    """True classes that go by the name of another, if that is an exchange.

    A class that is mistaken for another is none: there the other is called by its own name, too.
    So each name is used for one class, and who owns it is called otherwise as well.
    """
    counts = counts_of(objects)
    numbers = counts.sum(1)
    renamed = best_renaming(objects)
    moved = {}
    for label, name in enumerate(renamed):
        if label == name or numbers[label] < FEWEST:
            continue
        share, own = counts[label, name] / numbers[label], counts[label, label] / numbers[label]
        if share >= SHARE and own <= share / 2:
            moved[label] = int(name)
    taken = list(moved.values())
    moved = {
        label: name
        for label, name in moved.items()
        if taken.count(name) == 1 and (numbers[name] < FEWEST or name in moved)
    }
    away = sum(int(counts[label, name]) for label, name in moved.items())
    own = sum(int(counts[label, label]) for label in moved)
    names = np.array([moved.get(label, label) for label in range(len(counts))])
    told = counts[np.arange(len(counts)), names].sum()
    # Of a head that was never trained most classes go by strange names, but not by one each.
    is_order = len(moved) > 1 and told >= ORDERED * counts.max(1).sum()
    return moved if is_order and _sign_test(away, own) < P else {}


def _sign_test(more: int, fewer: int) -> float:
    """How often a fair coin falls so far to one side."""
    count = more + fewer
    tail = sum(math.comb(count, k) for k in range(more, count + 1))
    return tail / 2**count


def check_class_order(
    objects: Objects, indices: Sequence[int] | None, count: int, report: Report
) -> dict[int, int]:
    """Adds the finding where classes are exchanged.

    Args:
        objects: as the teacher read them, in the student's classes.
        indices: the teacher's index, or -1, by which the objects of each of the student's classes
            were read; None where both are the same.
        count: of the student's classes.
        report: gets the finding.

    Returns:
        The exchanged classes.
    """
    moved = exchanged(objects)
    if not moved:
        return moved
    counts = counts_of(objects)
    before = list(range(count)) if indices is None else list(indices)
    after = list(before)
    for label, name in moved.items():
        if label < count:
            after[label] = before[name] if name < len(before) else name
    labels = list(moved)
    evidence = dict(
        classes=labels,
        called=[moved[label] for label in labels],
        share=[counts[label, moved[label]] / counts[label].sum() for label in labels],
        share_as_configured=[counts[label, label] / counts[label].sum() for label in labels],
        objects=[int(counts[label].sum()) for label in labels],
    )
    report.add(
        'class-order', 'teacher.class_map', evidence, f'teacher=dict(..., class_map={after})'
    )
    return moved


def check_class_names(
    teacher: Sequence[str], student: Sequence[str], compared: bool, report: Report
) -> None:
    """Adds the finding for two lists of names that differ.

    Args:
        teacher: names of the teacher's classes.
        student: names of the student's.
        compared: whether a term compares classes, which is refused then.
        report: gets the finding.
    """
    evidence = evidence_of_names(teacher, student)
    missing = [name for name in student if name not in teacher]
    near = _spelled(missing, teacher)
    if not missing:
        advice = "teacher=dict(..., class_map='names')"
    elif near:
        shared = {name: name for name in student if name in teacher}
        advice = f'teacher=dict(..., class_map={ {**shared, **near} })'
    elif len(missing) < len(student):
        advice = "teacher=dict(..., class_map='names')  # the others are not distilled"
    else:
        advice = 'teacher=dict(..., class_map=[...])  # index of the teacher for each class, or -1'
    severity = 'error' if compared else 'warning'
    report.add('class-names', 'teacher.class_map', evidence, advice, severity)


def evidence_of_names(teacher: Sequence[str], student: Sequence[str]) -> dict[str, Any]:
    """How two lists of names differ: counts, and some of the names."""
    missing = [name for name in student if name not in teacher]
    near = _spelled(missing, teacher)
    return dict(
        teacher_classes=len(teacher),
        student_classes=len(student),
        missing=len(missing),
        spelled_otherwise=len(near),
        other_position=sum(a != b for a, b in zip(teacher, student) if b in teacher),
        missing_names=missing[:_MOST_NAMES],
        near_matches=dict(list(near.items())[:_MOST_NAMES]),
    )


def _spelled(missing: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The teacher's name most like each that is missing."""
    lower = {other.lower(): other for other in names}
    found = {}
    for name in missing:
        if match := difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6):
            found[name] = lower[match[0]]
    return found


def indices_of_teacher(
    class_map: Sequence[int] | None, names: np.ndarray | None, count: int
) -> list[int] | None:
    """The teacher's index, or -1, of each of the student's classes; None if they are the same.

    Args:
        class_map: of the config.
        names: result of :func:`names_of_teacher`.
        count: of the student's classes.
    """
    if class_map is not None or names is None:
        return None if class_map is None else list(class_map)
    found = {int(own): index for index, own in enumerate(names) if own != NOTHING}
    return [found.get(label, UNKNOWN) for label in range(count)]


def names_of_teacher(
    class_map: Sequence[int] | None,
    teacher: Sequence[str] | None,
    student: Sequence[str] | None,
) -> np.ndarray | None:
    """The student's class, or -1, for each of the teacher's; None if they are the same.

    Without a map and with names in another order, classes go by their names.
    """
    if class_map is None:
        named = teacher and student and tuple(teacher) != tuple(student)
        if not (named and teacher and student and set(teacher) & set(student)):
            return None
        return np.array([list(student).index(n) if n in student else NOTHING for n in teacher])
    names = np.full(max(class_map, default=UNKNOWN) + 1, NOTHING)
    for own, theirs in enumerate(class_map):
        if theirs != UNKNOWN and names[theirs] == NOTHING:
            names[theirs] = own
    return names
