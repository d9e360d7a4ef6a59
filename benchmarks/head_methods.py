"""What ``detection.py --pair`` compares: pairs of every kind of head, and what each may learn.

A method is a set of terms, written ``a+b``: ``kd`` is one term on the class logits,
``gdd_channel+kd`` adds one on features. One fixed weight for each term and kind of head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from benchmarks.methods import BASELINE, LOSSES, TASKS, TITLES, Task

Term = dict[str, Any]

# Loss and student's view of each term. Temperature 1 wherever detectors are concerned, as the
# methods' detection sections have it; what is selected is each loss's own default for the head.
PARTS: dict[str, Term] = {
    'kd': dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits'),
    'dkd': dict(
        loss=dict(type='DKDLoss', temperature=1.0, alpha=1.0, beta=0.25), student='cls_logits'
    ),
    'loca': dict(loss=dict(type='LoCaLoss', temperature=1.0), student='cls_logits'),
    'ckd': dict(loss=dict(type='CKDLoss'), student='cls_logits'),
    'ipwd': dict(
        loss=dict(type='IPWDLoss', temperature=1.0, normalize='batch_mean', clip_max=5),
        student='cls_logits',
    ),
    # Heads have a loss_dfl and a loss_mask of their own, hence the names.
    'dfl': dict(
        loss=dict(type='KDLoss', temperature=10.0),
        student='dfl_logits',
        select=dict(by='positive', weights='student_score', reduction='sum'),
        name='kd_dfl',
    ),
    'mask': dict(loss=dict(type='KDLoss', temperature=1.0), student='mask_logits', name='kd_mask'),
    'gdd_channel': dict(loss=LOSSES['gdd_channel'], student='neck'),
    # Other choices of rows, to see what the choice is worth.
    'kd_all': dict(
        loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', select='all', name='kd'
    ),
    'kd_scored': dict(
        loss=dict(type='KDLoss', temperature=1.0),
        student='cls_logits',
        select='score_weighted',
        name='kd',
    ),
    'ckd_strong': dict(loss=dict(type='CKDLoss'), student='cls_logits', name='ckd'),
    # To see whether it is the start that KD spoils.
    'kd_late': dict(
        loss=dict(type='KDLoss', temperature=1.0),
        student='cls_logits',
        begin=2,
        by_epoch=True,
        name='kd',
    ),
}
PART_TITLES = {
    **TITLES,
    'kd': 'KD',
    'dkd': 'DKD',
    'loca': 'LoCa',
    'ckd': 'CKD',
    'ipwd': 'IPWD',
    'dfl': 'KD of DFL bins',
    'mask': 'KD of mask logits',
    'gdd_channel': 'GDD',
    'kd_all': 'KD of all queries',
    'kd_scored': 'KD of all boxed positions',
    'kd_late': 'KD from the third epoch on',
    'ckd_strong': 'CKD, chosen weight',
}

# One weight per term and kind of head. Published: DKD, CKD on RoIs. GDD: that of the feature
# benchmark (BCCD's val split). KD on pixels: best of 0.03, 0.1, 0.3 on the selection images, seed
# 3 (results/digits_pspnet_selection.md); 1 had failed. DKD, LoCa and IPWD follow KD there. KD on
# queries has the weight of their class loss; bins are weighed and summed as LD does. CKD's other
# weight was chosen on FCOS like that of pixels, from 1 and 10 (results/digits_fcos_selection.md).
# All else is 1 without a search.
WEIGHTS: dict[str, dict[str, float]] = {
    'dense': dict(
        kd=1.0,
        kd_scored=1.0,
        loca=1.0,
        ckd=0.1,
        ckd_strong=10.0,
        ipwd=1.0,
        dfl=0.25 / 4 / 9,  # the digits GFL has 9 bins
        gdd_channel=1.0,
    ),
    'roi': dict(kd=1.0, dkd=1.0, loca=1.0, ckd=0.1, ipwd=1.0, mask=1.0, gdd_channel=1.0),
    'query': dict(
        kd=2.0, kd_all=1.0, loca=1.0, ckd=0.1, ckd_strong=10.0, ipwd=1.0, gdd_channel=1.0
    ),
    'pixel': dict(kd=0.3, kd_late=0.3, dkd=0.3, loca=0.3, ckd=0.1, ipwd=0.3, gdd_channel=1.0),
}


@dataclass(frozen=True)
class Pair:
    """A teacher and a student on one data set.

    Args:
        teacher: Config of the teacher, relative to the repository.
        student: Config of the student alone.
        kind: Of the student's head; a key of ``WEIGHTS``.
        methods: What is compared with the student alone, unless the command line says otherwise.
        epochs: Length of the student's and of the teacher's training; None is the config's.
        report: What the reported numbers are measured on, in words.
        select: What the weights are chosen on, in words.
        task: A key of ``TASKS``.
        views: Changes of ``PARTS`` for this pair, by part.
        teacher_of: The pair whose teacher this is, where it is another's.
        student_of: The pair whose student alone this is, where it is another's.
        split: Which of the config's loaders is reported.
    """

    teacher: str
    student: str
    kind: str
    methods: tuple[str, ...]
    epochs: tuple[int | None, int | None]
    report: str
    select: str
    task: str = 'detection'
    views: dict[str, Term] | None = None
    teacher_of: str | None = None
    student_of: str | None = None
    split: str = 'val'

    @property
    def measured(self) -> Task:
        return TASKS[self.task]

    @property
    def weights(self) -> dict[str, float]:
        return WEIGHTS[self.kind]

    @property
    def length(self) -> int:
        """Epochs of the student."""
        return self.epochs[0] or Config.fromfile(self.student).train_cfg.max_epochs

    def terms(
        self, method: str, weight: float | None = None, epochs: int | None = None
    ) -> list[Term]:
        """The distillation terms of ``method``; the baseline has none.

        Args:
            method: Parts joined by '+'.
            weight: Of a method with one part, instead of that of the table.
            epochs: Length of the student's training, if it is another than the pair's.

        Raises:
            ValueError: A part that this kind of head has no weight for.
        """
        if method == BASELINE:
            return []
        terms = []
        for part in method.split('+'):
            if part not in self.weights:
                raise ValueError(
                    f'Method {method!r}: {part!r} is none of {", ".join(self.weights)}, the parts '
                    f'for {self.kind} heads; join several with "+".'
                )
            term = copy.deepcopy({**PARTS[part], **(self.views or {}).get(part, {})})
            if part == 'ipwd':  # its auxiliary classifier learns before the weights count
                term['loss']['start_epoch'] = (epochs or self.length) // 3
            used = self.weights[part] if weight is None else weight
            terms.append(dict(term, weight=used, name=term.get('name', part)))
        return terms


def title(method: str) -> str:
    """A method's name in tables: ``'GDD + KD'``."""
    return ' + '.join(PART_TITLES.get(part, part) for part in method.split('+'))


DIGITS_REPORT = 'val images of the digits set of seed 0'
DIGITS_SELECT = (
    'val images of the digits set of seed 1, never reported; trained on the set of seed 0'
)
DETECTION = 'configs/detection/digits'
DENSE = (BASELINE, 'gdd_channel', 'kd', 'loca', 'ckd', 'ipwd')
SOFTMAX = (BASELINE, 'gdd_channel', 'kd', 'dkd', 'loca', 'ckd', 'ipwd')


def _digits(
    teacher: str,
    student: str,
    kind: str,
    methods: tuple[str, ...],
    epochs: tuple[int | None, int | None],
    **more: Any,
) -> Pair:
    return Pair(teacher, student, kind, methods, epochs, DIGITS_REPORT, DIGITS_SELECT, **more)


# Teacher, student, and how many epochs each is trained, of pairs whose heads are combined.
_HEADS = {
    'gfl': ('configs/demo/gfl_r18_digits.py', 'configs/demo/gfl_r18-quarter_digits.py', None, None),
    **{
        name: (
            f'{DETECTION}/{file}-half_digits.py',
            f'{DETECTION}/{file}-quarter_digits.py',
            *epochs,
        )
        for name, file, epochs in (
            ('fcos', 'fcos_r18', (10, 5)),
            ('faster', 'faster-rcnn_r18', (8, 4)),
            ('detr', 'deformable-detr_r18', (12, 4)),
        )
    },
}


def _by_boxes(teacher: str, student: str, kind: str) -> Pair:
    """A pair of two others: the teacher of one, the student of the other."""
    return _digits(
        _HEADS[teacher][0],
        _HEADS[student][1],
        kind,
        (BASELINE, 'gdd_channel', 'kd', 'gdd_channel+kd'),
        (_HEADS[student][3], _HEADS[teacher][2]),
        views=dict(kd=dict(teacher='detections')),
        teacher_of=teacher,
        student_of=student,
    )


PAIRS: dict[str, dict[str, Pair]] = {
    'digits': {
        'gfl': _digits(
            'configs/demo/gfl_r18_digits.py',
            'configs/demo/gfl_r18-quarter_digits.py',
            'dense',
            (*DENSE, 'kd+dfl', 'gdd_channel+kd', 'ckd_strong'),
            (None, None),
        ),
        'fcos': _digits(
            f'{DETECTION}/fcos_r18-half_digits.py',
            f'{DETECTION}/fcos_r18-quarter_digits.py',
            'dense',
            (*DENSE, 'gdd_channel+kd', 'ckd_strong'),
            (5, 10),
        ),
        'retinanet': _digits(
            f'{DETECTION}/retinanet_r18-half_digits.py',
            f'{DETECTION}/retinanet_r18-quarter_digits.py',
            'dense',
            (BASELINE, 'gdd_channel', 'kd', 'gdd_channel+kd'),
            (4, 8),
        ),
        'rtmdet': _digits(
            f'{DETECTION}/rtmdet-tiny_digits.py',
            f'{DETECTION}/rtmdet-half_digits.py',
            'dense',
            (BASELINE, 'gdd_channel', 'kd', 'gdd_channel+kd'),
            (3, 6),
        ),
        'faster': _digits(
            f'{DETECTION}/faster-rcnn_r18-half_digits.py',
            f'{DETECTION}/faster-rcnn_r18-quarter_digits.py',
            'roi',
            (*SOFTMAX, 'gdd_channel+dkd'),
            (4, 8),
        ),
        'mask': _digits(
            'configs/instance_segmentation/digits/mask-rcnn_r18-half_digits.py',
            'configs/instance_segmentation/digits/mask-rcnn_r18-quarter_digits.py',
            'roi',
            (*SOFTMAX, 'mask', 'kd+mask', 'gdd_channel+dkd'),
            (3, 7),
            task='instance',
        ),
        'pspnet': _digits(
            'configs/semantic_segmentation/digits/pspnet_r18-half_digits.py',
            'configs/semantic_segmentation/digits/pspnet_r18-quarter_digits.py',
            'pixel',
            (*SOFTMAX, 'gdd_channel+kd', 'kd_late'),
            (5, 8),
            task='semantic',
            views=dict(gdd_channel=dict(student=dict(path='backbone', levels=[-1]))),
        ),
        'detr': _digits(
            f'{DETECTION}/deformable-detr_r18-half_digits.py',
            f'{DETECTION}/deformable-detr_r18-quarter_digits.py',
            'query',
            (*DENSE, 'gdd_channel+kd', 'kd_all', 'gdd_channel+kd_all', 'ckd_strong'),
            (4, 12),
            views=dict(kd=dict(select='score_weighted')),
        ),
        # Another kind of teacher: logits through its decoded boxes, features as they are.
        'faster-gfl': _digits(
            f'{DETECTION}/faster-rcnn_r18-half_digits.py',
            'configs/demo/gfl_r18-quarter_digits.py',
            'dense',
            (BASELINE, 'gdd_channel', 'kd', 'gdd_channel+kd', 'kd_scored', 'gdd_channel+kd_scored'),
            (None, 8),
            views=dict(
                kd=dict(teacher='detections', select='positive'),
                kd_scored=dict(teacher='detections'),
            ),
            teacher_of='faster',
            student_of='gfl',
        ),
        'gfl-fcos': _digits(
            'configs/demo/gfl_r18_digits.py',
            f'{DETECTION}/fcos_r18-quarter_digits.py',
            'dense',
            (BASELINE, 'gdd_channel', 'kd', 'gdd_channel+kd'),
            (5, None),
            teacher_of='gfl',
            student_of='fcos',
        ),
        # No rows in common: classes through the teacher's boxes.
        'detr-fcos': _by_boxes('detr', 'fcos', 'dense'),
        'detr-faster': _by_boxes('detr', 'faster', 'roi'),
        'faster-detr': _by_boxes('faster', 'detr', 'query'),
        'gfl-faster': _by_boxes('gfl', 'faster', 'roi'),
        'gfl-detr': _by_boxes('gfl', 'detr', 'query'),
    },
    'bccd': {
        'gfl': Pair(
            'configs/detection/bccd/gfl_r18_bccd.py',
            'configs/detection/bccd/gfl_r18-quarter_bccd.py',
            'dense',
            (BASELINE, 'gdd_channel', 'kd', 'gdd_channel+kd'),
            (9, None),
            'test split (72 images)',
            'val split (87 images)',
            split='test',
        ),
        'faster': Pair(
            'configs/detection/bccd/faster-rcnn_r18-half_bccd.py',
            'configs/detection/bccd/faster-rcnn_r18-quarter_bccd.py',
            'roi',
            (BASELINE, 'gdd_channel', 'dkd', 'gdd_channel+dkd'),
            (9, None),
            'test split (72 images)',
            'val split (87 images)',
            split='test',
        ),
    },
}
