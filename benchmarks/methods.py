"""What ``detection.py`` compares: data sets, methods, and one fixed weight for each method.

And what a benchmark of any task has: a student alone, and metrics. The pairs of ``--pair`` and
their methods, logits and combinations, are in ``head_methods.py``, the methods of
``classification.py`` in ``cls_methods.py``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

BASELINE = 'student'


class Optimizer(NamedTuple):
    """What a student may be trained with instead of its config's optimizer.

    Attributes:
        about: what it is, in words.
        wrapper: the ``optim_wrapper`` of a config; None leaves the config's own.
        title: its name in tables.
    """

    about: str
    wrapper: dict[str, Any] | None
    title: str = ''


_SGD = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
)
OPTIMIZERS = {
    'own': Optimizer("the config's", None),
    'sgd': Optimizer(
        "mmdet's default: SGD, lr 0.02, momentum 0.9, weight decay 1e-4, no clipping", _SGD, 'SGD'
    ),
    'sgd-clip': Optimizer(
        'SGD, lr 0.02, momentum 0.9, weight decay 1e-4, clipping at 2',
        dict(_SGD, clip_grad=dict(max_norm=2, norm_type=2)),
        'SGD, clipped at 2',
    ),
    'sgd-clip8': Optimizer(
        'SGD, lr 0.02, momentum 0.9, weight decay 1e-4, clipping at 8',
        dict(_SGD, clip_grad=dict(max_norm=8, norm_type=2)),
        'SGD, clipped at 8',
    ),
    'adamw': Optimizer(
        'AdamW, lr 1e-3, weight decay 0.05, clipping at 35',
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            clip_grad=dict(max_norm=35, norm_type=2),
        ),
        'AdamW',
    ),
}


@dataclass(frozen=True)
class Task:
    """What is measured.

    Args:
        metrics: Column name to the evaluator's key; the first one is compared.
        scale: Factor that turns a metric into points (0 to 100).
        evaluations: Of a run, evenly spaced; None means one after every epoch.
    """

    metrics: dict[str, str]
    scale: float
    evaluations: int | None

    @property
    def main(self) -> str:
        return next(iter(self.metrics))


TASKS = {
    'detection': Task(
        dict(AP='coco/bbox_mAP', AP50='coco/bbox_mAP_50', AP75='coco/bbox_mAP_75'),
        scale=100.0,
        evaluations=3,
    ),
    'instance': Task(
        dict(
            mask_AP='coco/segm_mAP',
            mask_AP50='coco/segm_mAP_50',
            box_AP='coco/bbox_mAP',
            box_AP50='coco/bbox_mAP_50',
        ),
        scale=100.0,
        evaluations=1,
    ),
    'semantic': Task(dict(mIoU='mIoU', mAcc='mAcc', aAcc='aAcc'), scale=1.0, evaluations=1),
    'classification': Task(
        dict(top1='accuracy/top1', top5='accuracy/top5'), scale=1.0, evaluations=None
    ),
}
DETECTION = TASKS['detection']

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
        split: Which of the config's loaders is reported.
    """

    teacher: str
    student: str
    weights: dict[str, float]
    report: str
    select: str
    split: str = 'val'


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
        split='test',
    ),
}


def build_terms(method: str, weight: float) -> list[dict[str, Any]]:
    """The distillation terms of ``method``; the baseline has none."""
    if method == BASELINE:
        return []
    return [dict(loss=copy.deepcopy(LOSSES[method]), student=TAP, weight=weight, name=method)]
