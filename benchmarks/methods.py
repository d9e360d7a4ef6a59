"""What ``detection.py`` compares: data sets, methods, and one fixed weight for each method."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

BASELINE = 'student'

# The loss of each method. All listen at the same place (the neck's levels), so that only the loss
# differs.
LOSSES: dict[str, dict[str, Any]] = {
    'gdd_channel': dict(type='GDDLoss', temperature=4.0, noise='channel'),
    'gdd_shared': dict(type='GDDLoss', temperature=4.0, noise='shared'),
    'gdd_none': dict(type='GDDLoss', temperature=4.0, noise='none'),
    'cwd': dict(type='CWDLoss'),
    'mgd': dict(type='MGDLoss', normalize='mean'),
    'pkd': dict(type='PKDLoss'),
}
METHODS = (BASELINE, *LOSSES)
TITLES = {
    BASELINE: 'student alone',
    'gdd_channel': 'GDD, channel noise',
    'gdd_shared': 'GDD, shared noise',
    'gdd_none': 'GDD, no noise',
    'cwd': 'CWD',
    'mgd': 'MGD',
    'pkd': 'PKD',
}
TAP = 'neck'  # its output is the tuple of pyramid levels: one loss per level, summed


@dataclass(frozen=True)
class Benchmark:
    """One data set with its teacher and student.

    Args:
        teacher: Config of the teacher, relative to the repository.
        student: Config of the student alone.
        weights: Loss weight per method.
        report: What the reported numbers are measured on, in words.
        select: What the weights are chosen on, in words.
    """

    teacher: str
    student: str
    weights: dict[str, float]
    report: str
    select: str


# Best of a grid on BCCD's val split (seed 0, 6 epochs; results/bccd_selection.md). The digits take
# them over unchanged, so nothing was chosen on them.
WEIGHTS = dict(gdd_channel=1.0, gdd_shared=1.0, gdd_none=1.0, cwd=1.0, mgd=0.2, pkd=1.0)

BENCHMARKS = {
    'digits': Benchmark(
        teacher='configs/demo/gfl_r18_digits.py',
        student='configs/demo/gfl_r18-quarter_digits.py',
        weights=WEIGHTS,
        report='val images of the digits set of seed 0',
        select='val images of the digits set of seed 1, with a teacher of its own',
    ),
    'bccd': Benchmark(
        teacher='configs/detection/bccd/gfl_r18_bccd.py',
        student='configs/detection/bccd/gfl_r18-quarter_bccd.py',
        weights=WEIGHTS,
        report='test split (72 images)',
        select='val split (87 images)',
    ),
}


def build_terms(method: str, weight: float) -> list[dict[str, Any]]:
    """The distillation terms of ``method``; the baseline has none."""
    if method == BASELINE:
        return []
    return [dict(loss=copy.deepcopy(LOSSES[method]), student=TAP, weight=weight, name=method)]
