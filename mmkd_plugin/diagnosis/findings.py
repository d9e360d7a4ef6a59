"""What the doctor finds: a code, how bad it is, where, the numbers, and what to change."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1
SEVERITIES = ('error', 'warning', 'note')

# Every code with its severity where nothing else is said. docs/why-not.md explains each of them.
CODES: dict[str, str] = {
    # the images and classes of the teacher
    'channel-order': 'error',
    'normalization': 'error',
    'class-order': 'error',
    'class-names': 'error',
    # the teacher
    'untrained-teacher': 'error',
    'weak-teacher': 'warning',
    'nothing-to-learn': 'warning',
    'teacher-in-training-mode': 'error',
    # the terms
    'levels-misaligned': 'error',
    'frozen-tap': 'error',
    'no-rows': 'error',
    'weight-too-small': 'warning',
    'weight-too-large': 'warning',
    'gradient-conflict': 'warning',
    'overflow': 'error',
    # the comparison
    'baseline-differs': 'warning',
    # what stops a run before it begins
    'bad-checkpoint': 'error',
    'refused': 'error',
    # what could not be looked at
    'no-images': 'warning',
    'not-examined': 'note',
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or could not be looked at.

    Attributes:
        code: a key of :data:`CODES`.
        severity: ``'error'``, ``'warning'`` or ``'note'``.
        where: a term, a model, or a key of the config.
        evidence: numbers; lists of numbers and short texts where a number says nothing.
        advice: the line of the config to change.
    """

    code: str
    severity: str
    where: str
    evidence: dict[str, Any]
    advice: str


@dataclass
class TermNumbers:
    """What was measured of one term, means over the batches; None where nothing could be.

    Attributes:
        weight: that of the config, or the one that is suggested where the run finds it itself.
        loss: the value that the run would log.
        rows: that count in a batch; None for feature maps.
        gradient_ratio: norm of the term's gradient divided by the norm of the task's, over the
            student's trainable parameters that both reach.
        cosine: of the angle between these gradients.
        suggested_weight: the weight of ``weight='auto'``.
        teacher_right: share of the rows with a class on which the teacher says it.
        student_right: the same of the student.
        kind: what the term compares, a key of :data:`mmkd_plugin.weights.TARGETS`.
    """

    weight: float | None = None
    loss: float | None = None
    rows: float | None = None
    gradient_ratio: float | None = None
    cosine: float | None = None
    suggested_weight: float | None = None
    teacher_right: float | None = None
    student_right: float | None = None
    kind: str = ''


CLASSIFIERS = ('image', 'image_feature')  # kinds of terms of image classifiers
TERM_KEYS = ('weight', 'loss', 'rows', 'gradient_ratio', 'cosine', 'suggested_weight')  # in JSON


@dataclass
class Report:
    """All that the doctor says; :meth:`as_dict` is the JSON of ``--json``."""

    findings: list[Finding] = field(default_factory=list)
    terms: dict[str, TermNumbers] = field(default_factory=dict)
    teacher: dict[str, float] = field(default_factory=dict)
    student: dict[str, float] | None = None
    cost: dict[str, float | None] = field(default_factory=dict)
    answer: str = 'cannot tell'
    because: list[str] = field(default_factory=list)

    def add(
        self,
        code: str,
        where: str,
        evidence: dict[str, Any],
        advice: str,
        severity: str | None = None,
    ) -> None:
        """Adds a finding, unless the same code was found in the same place."""
        if not any((f.code, f.where) == (code, where) for f in self.findings):
            severity = CODES[code] if severity is None else severity
            self.findings.append(Finding(code, severity, where, evidence, advice))

    def has(self, *codes: str) -> bool:
        """Whether one of these codes was found."""
        return any(finding.code in codes for finding in self.findings)

    @property
    def status(self) -> int:
        """Exit status of the command: 1 with a finding of severity ``error``, else 0."""
        return int(any(finding.severity == 'error' for finding in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """Plain values; NaN and infinite numbers, which JSON has no word for, are None."""
        order = sorted(self.findings, key=lambda f: SEVERITIES.index(f.severity))
        content = dict(
            version=VERSION,
            findings=[asdict(finding) for finding in order],
            terms={
                name: {key: getattr(numbers, key) for key in TERM_KEYS}
                for name, numbers in self.terms.items()
            },
            teacher=dict(metrics=self.teacher),
            student=dict(metrics=self.student),
            cost=self.cost,
            verdict=dict(answer=self.answer, because=self.because),
        )
        return _plain(content)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f'{value:.6g}') if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
