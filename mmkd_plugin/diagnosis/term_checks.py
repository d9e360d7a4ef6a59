"""Whether a term teaches: gradients, rows, weight, levels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .findings import CLASSIFIERS, Report, TermNumbers
from .levels import LevelPair, agreement, moves
from .measure import Measured, TermMeasure
from .paired import difference
from .refusals import note_refusal

# Gradient ratios between which a term does something and leaves the task its part, by what the term
# compares. docs/why-not.md says on which runs they were read off.
BANDS: dict[str, tuple[float, float]] = dict(
    feature=(0.005, 60.0),
    image_feature=(0.001, 1.0),
    dense=(0.01, 5.0),
    roi=(0.02, 10.0),
    query=(0.01, 5.0),
    pixel=(0.01, 5.0),
    image=(0.05, 15.0),
)
# The task's gradient of a new student says little of later: KD on a dense head was seen at 20 times
# what it was 25 iterations later.
NEW_STUDENT = 20.0
# Cosine below which two gradients pull against each other. That of a new student, or of a term
# whose connectors are new, is mostly chance.
CONFLICT, CONFLICT_OF_NEW = -0.1, -0.3
KNOWN_ALREADY = 0.02  # share of rows that the teacher has right more often than the student
FEWEST_ROWS = 50
NO_ROW = 1e-3  # sum of weights of the rows of a batch
SHIFTED, AGREED = 0.15, 0.3  # how much more maps must agree when one is moved, and how much
FEWEST_MAPS = 8


def check_terms(measured: Measured, trained: bool, report: Report) -> None:
    """Adds the findings on all terms, and their numbers.

    Args:
        measured: result of :func:`mmkd_plugin.diagnosis.measure.measure_terms`.
        trained: whether the student is.
        report: gets them.
    """
    if measured.refused is not None:
        note_refusal(report, measured.refused, 'student')
    for name, term in measured.terms.items():
        report.terms[name] = numbers_of(term)
        if term.refused is not None:
            note_refusal(report, term.refused, name)
        elif term.weight == 0:
            report.add('not-examined', name, dict(weight=0), f'{name}: weight=0 switches it off')
        elif term.losses:
            _check_term(name, term, trained, report)


def numbers_of(term: TermMeasure) -> TermNumbers:
    """Means over the batches, at the weight with which the run will act."""
    suggested = term.suggested
    weight = suggested if term.weight is None else term.weight
    scale = (weight or 0.0) if term.weight is None else 1.0
    counts = term.counts
    return TermNumbers(
        weight=weight,
        loss=None if not term.losses else scale * _mean(term.losses),
        rows=_mean(term.rows) if term.rows else None,
        gradient_ratio=scale * _mean(term.ratios) if term.ratios else None,
        cosine=_mean(term.cosines) if term.cosines else None,
        suggested_weight=suggested,
        teacher_right=counts.teacher / counts.positives if counts.positives else None,
        student_right=counts.student / counts.positives if counts.positives else None,
        kind=term.kind,
    )


def _check_term(name: str, term: TermMeasure, trained: bool, report: Report) -> None:
    numbers = report.terms[name]
    if not all(map(math.isfinite, [*term.losses, *term.ratios])):
        evidence = dict(loss=numbers.loss, gradient_ratio=numbers.gradient_ratio)
        report.add('overflow', name, evidence, f'--weight {name}=auto, or bfloat16 for float16')
        return
    if term.rows and max(term.rows) < NO_ROW:
        evidence = dict(rows=max(term.rows), batches=len(term.rows))
        report.add('no-rows', name, evidence, f'--term-options {name}.select=all')
        return
    if not term.reaches:
        evidence = dict(loss=numbers.loss, gradient=0.0, batches=len(term.losses))
        advice = f"{name}: student='neck', or another place behind the frozen part"
        report.add('frozen-tap', name, evidence, advice)
        return
    _check_weight(name, term, trained, report)
    _check_cosine(name, term, trained, report)
    if trained and term.kind not in CLASSIFIERS:  # whose rows are images that both have learned
        _check_rows(name, term, report)
    for level in term.levels.values():
        check_level(name, level, report)


def _check_weight(name: str, term: TermMeasure, trained: bool, report: Report) -> None:
    numbers = report.terms[name]
    if term.weight is None or not term.ratios:
        return
    low, high = BANDS.get(term.kind, BANDS['feature'])
    # A trained classifier has hardly any loss left on the images that it learned from.
    high *= 1.0 if trained and term.kind not in CLASSIFIERS else NEW_STUDENT
    ratio = float(np.median(term.ratios))
    if low <= ratio <= high:
        return
    evidence = dict(
        gradient_ratio=ratio,
        least=low,
        most=high,
        weight=term.weight,
        suggested_weight=numbers.suggested_weight,
    )
    suggested = numbers.suggested_weight
    value = 'auto' if suggested is None else f'{suggested:g}'
    code = 'weight-too-small' if ratio < low else 'weight-too-large'
    report.add(code, name, evidence, f'--weight {name}={value}')


def _check_cosine(name: str, term: TermMeasure, trained: bool, report: Report) -> None:
    cosines = np.array(term.cosines)
    if not len(cosines):
        return
    against = difference(-cosines)
    spread = against.error if len(cosines) > 1 else 0.0
    is_new = term.has_connectors or not trained
    limit = CONFLICT_OF_NEW if is_new else CONFLICT
    if against.mean - 2 * spread > -limit and (cosines < 0).mean() >= 0.75:
        evidence = dict(cosine=-against.mean, error=spread, batches=len(cosines))
        report.add('gradient-conflict', name, evidence, f'--weight {name}=0')


def _check_rows(name: str, term: TermMeasure, report: Report) -> None:
    """Of terms on logits, whether their teacher is right where the student is not."""
    counts = term.counts
    if counts.positives < FEWEST_ROWS:
        return
    teacher, student = counts.teacher / counts.positives, counts.student / counts.positives
    if abs(teacher - student) >= KNOWN_ALREADY or counts.both < 0.9 * counts.teacher:
        return
    evidence = dict(
        teacher_right=teacher,
        student_right=student,
        student_right_where_teacher_is=counts.both / max(counts.teacher, 1),
        rows=counts.positives,
    )
    report.add('nothing-to-learn', name, evidence, '--recipe gdd')


# -- levels ----------------------------------------------------------------------------------------


def check_level(name: str, level: LevelPair, report: Report) -> None:
    """Adds the finding for maps of other strides, or that fit better when one is moved."""
    own, theirs = level.sizes
    where = f'{name}: {level.student}'
    if len(own) == 2 and any(not 0.75 <= a / b <= 1.33 for a, b in zip(own, theirs)):
        evidence = dict[str, Any](student_size=list(own), teacher_size=list(theirs))
        advice = f"{name}: pair {level.student} with the teacher's level of the same stride"
        report.add('levels-misaligned', where, evidence, advice)
        return
    maps = level.alike
    if len(maps) < FEWEST_MAPS:
        return
    found = agreement(maps).double().numpy()
    best = int(found.mean(0).argmax())
    gain = difference(found[:, best] - found[:, 0])
    if best == 0 or gain.mean < SHIFTED or gain.p > 0.001 or found[:, best].mean() < AGREED:
        return
    name_of_move, row, column = moves(*maps[0][0].shape[1:])[best]
    evidence = dict[str, Any](
        agreement=float(found[:, 0].mean()),
        agreement_when_moved=float(found[:, best].mean()),
        move=name_of_move,
        rows=row,
        columns=column,
        images=gain.count,
    )
    advice = f'{name}: the teacher must see the very crop of the student (its view, its padding)'
    report.add('levels-misaligned', where, evidence, advice)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
