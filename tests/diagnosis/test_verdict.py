"""The rule of the verdict, without a model."""

from __future__ import annotations

import pytest

from mmkd_plugin.diagnosis.findings import CODES, Report, TermNumbers
from mmkd_plugin.diagnosis.paired import Difference
from mmkd_plugin.diagnosis.verdict import decide

GAIN = Difference(mean=0.2, error=0.01, p=1e-4, count=200)


def report() -> Report:
    """Of a detector with a much better teacher."""
    numbers = TermNumbers(kind='dense', teacher_right=0.9, student_right=0.5)
    sides = dict(teacher={'objects/right': 0.9}, student={'objects/right': 0.5})
    return Report(terms=dict(kd=numbers), **sides)


def test_a_much_better_teacher_helps():
    made = report()
    decide(made, GAIN, trained=True)
    assert made.answer == 'helps'


@pytest.mark.parametrize('code', CODES)
def test_no_verdict_is_helps_beside_an_error(code):
    made = report()
    made.add(code, 'anywhere', {}, '', 'error')
    decide(made, GAIN, trained=True)
    assert made.answer != 'helps' and code in made.because[0]


def test_without_a_student_nothing_is_said():
    made = report()
    decide(made, None, trained=False)
    assert made.answer == 'cannot tell'
