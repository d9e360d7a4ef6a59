"""Whether this teacher will help this student: the rule of docs/why-not.md."""

from __future__ import annotations

from .findings import CLASSIFIERS, Report
from .paired import Difference

HELPS, NOT, UNKNOWN = 'helps', 'does not help', 'cannot tell'
GAP = 0.03  # of the mean scores of teacher and student, from which on there is much to learn
RIGHT_GAP = 0.02  # of the shares of objects that are right
ROW_GAP = 0.05  # the same of the shares of rows that are right
_NOT_STARTED = ('class-names', 'bad-checkpoint', 'refused')
_IDLE = ('weight-too-small', 'nothing-to-learn', 'no-rows', 'frozen-tap')


def decide(report: Report, gain: Difference | None, trained: bool) -> None:
    """Puts answer and reasons into the report.

    Args:
        report: with all findings and numbers of the terms.
        gain: the teacher's score on each image less the student's; None if one is not known.
        trained: whether the student is.
    """
    errors = [f for f in report.findings if f.severity == 'error']
    stops = [f for f in errors if f.code in _NOT_STARTED]
    if stops:
        report.answer = UNKNOWN
        report.because = [f'{f.code} ({f.where}): the run would not begin as it is' for f in stops]
        return
    if errors:
        report.answer = NOT
        report.because = [f'{f.code} ({f.where})' for f in errors]
        return
    if not trained or gain is None or not report.terms:
        report.answer = UNKNOWN
        report.because = [_missing(report, trained)]
        return
    report.answer, report.because = _of_numbers(report, gain)


def _missing(report: Report, trained: bool) -> str:
    if not report.terms:
        return 'no term could be measured'
    if not trained:
        return 'nothing is known of the student alone: give --student-checkpoint FILE'
    return 'teacher and student were not compared on labelled images'


def _of_numbers(report: Report, gain: Difference) -> tuple[str, list[str]]:
    """The answer of a pair that is wired right, with a trained student."""
    if report.has('weak-teacher'):
        return NOT, [f'weak-teacher: on {gain.count} images it scores {gain.mean:+.3f}']
    useless = {
        f.where: f.code for f in report.findings if f.code in _IDLE and f.where in report.terms
    }
    if len(useless) == len(report.terms):
        return NOT, [f'{code} ({name})' for name, code in useless.items()]
    doubtful = [f for f in report.findings if f.code in ('weight-too-large', 'gradient-conflict')]
    if doubtful:
        return UNKNOWN, [f'{f.code} ({f.where})' for f in doubtful]
    if report.has('nothing-to-learn') and 'teacher' in {f.where for f in report.findings}:
        return NOT, ['nothing-to-learn: teacher and student are equally good on these images']
    told = f'on {gain.count} images the teacher scores {gain.mean:+.3f} (p {gain.p:.2g})'
    if all(t.kind in CLASSIFIERS for t in report.terms.values()):
        return UNKNOWN, [told, 'but of image classifiers a better teacher was no sign of a gain']
    rows = [
        t.teacher_right - t.student_right
        for name, t in report.terms.items()
        if name not in useless and t.teacher_right is not None and t.student_right is not None
    ]
    if rows and max(rows) < ROW_GAP and not _has_features(report, useless):
        return UNKNOWN, [told, f'but it is right on {max(rows):+.3f} of the rows that are compared']
    right = [(side or {}).get('objects/right', 0.0) for side in (report.teacher, report.student)]
    if gain.mean >= GAP and gain.p < 0.01 and right[0] - right[1] >= RIGHT_GAP:
        return HELPS, [told]
    return UNKNOWN, [f'{told}, and {right[0] - right[1]:+.3f} of the objects are right']


def _has_features(report: Report, useless: dict[str, str]) -> bool:
    """Whether a term compares features, which have no classes to be right about."""
    return any(t.teacher_right is None for name, t in report.terms.items() if name not in useless)
