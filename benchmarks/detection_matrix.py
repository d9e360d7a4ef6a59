#!/usr/bin/env python
"""Which kinds of detectors teach which by ``teacher='detections'``: a step of every pair.

    python benchmarks/detection_matrix.py                         # all pairs; goes on
    python benchmarks/detection_matrix.py --students SOLO SSD --again
    python benchmarks/detection_matrix.py --list                  # the kinds

Each kind of head is a packaged config of MMDetection, made small. A teacher has seen the two
made-up images of the step so often that it finds something in them; a student is new. A pair
takes a step with classes (``cls_logits``) and one with boxes (``boxes``). It is

- ``ok``: a finite loss, with a finite gradient into the student that is not zero;
- ``silent``: a finite step in which the teacher had nothing to say to any of the student's rows;
- ``refused``: a sentence by the time of attaching, before the first step;
- ``crashed``: anything else. The last line of the error is kept.

The file of results is written row by row. ``benchmarks/tables.py`` draws the table of
docs/coverage.md from it.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from mmdet.registry import MODELS  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.logging import MessageHub  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

import mmkd_plugin  # noqa: E402
from benchmarks.coverage_data import IMAGE, MadeUp  # noqa: E402
from benchmarks.coverage_judge import FACTORS, last_line, quiet  # noqa: E402
from benchmarks.coverage_models import small_model  # noqa: E402
from benchmarks.sweep import content_of  # noqa: E402
from mmkd_plugin.cli.running import new_parser  # noqa: E402
from mmkd_plugin.cli.runs import write_json  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results' / 'detection_matrix.json'
KINDS = {
    'RetinaNet': 'retinanet/retinanet_r18_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py',
    'GFL': 'gfl/gfl_r50_fpn_1x_coco.py',
    'TOOD': 'tood/tood_r50_fpn_1x_coco.py',
    'RepPoints': 'reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py',
    'RTMDet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'YOLOX': 'yolox/yolox_tiny_8xb8-300e_coco.py',
    'YOLOv3': 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    'SSD': 'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'CenterNet': 'centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'Cascade R-CNN': 'cascade_rcnn/cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'Sparse R-CNN': 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'DETR': 'detr/detr_r18_8xb2-500e_coco.py',
    'Deformable DETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'Mask2Former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'SOLO': 'solo/solo_r50_fpn_1x_coco.py',
    'CondInst': 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'CornerNet': 'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
}
TERMS = dict(
    classes=dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', select='all'),
    boxes=dict(loss=dict(type='BoxDistillLoss', when='always'), student='boxes', select='all'),
)
LEARNING, RATE, CLIP = 100, 1e-3, 10.0  # steps, learning rate and norm by which a teacher learns


@cache
def factor(kind: str) -> int:
    """By which number the widths of a kind can be divided, so that it trains alone.

    Raises:
        Exception: by none.
    """
    for divisor in FACTORS:
        try:
            _loss(new_model(kind, 0, divisor)).backward()
        except Exception:
            if divisor == FACTORS[-1]:
                raise
        else:
            return divisor
    raise AssertionError


def new_model(kind: str, seed: int, divisor: int) -> nn.Module:
    """A small detector with the packaged config's own start."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(small_model(KINDS[kind], divisor, IMAGE))
    model.init_weights()
    return model.train()


def batch(model: nn.Module) -> dict[str, Any]:
    """Both made-up images as a model's own preprocessor gives them."""
    MessageHub.get_current_instance().update_info_dict(dict(epoch=0, iter=0))  # losses ask for it
    data = MadeUp(IMAGE, 80)
    items = [data[0], data[1]]
    if type(model).__name__ == 'RTMDet':  # its loss takes no masks of this kind
        for item in items:
            del item['data_samples'].gt_instances.masks
    return model.data_preprocessor(pseudo_collate(items), True)


def _loss(model: nn.Module) -> torch.Tensor:
    return model.parse_losses(model(**batch(model), mode='loss'))[0]


@cache
def teacher(kind: str) -> nn.Module:
    """One that finds something in the images."""
    model = new_model(kind, 1, factor(kind))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE)
    for _ in range(LEARNING):
        optimizer.zero_grad()
        _loss(model).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return model.eval()


@cache
def student(kind: str) -> nn.Module:
    return new_model(kind, 0, factor(kind))


def judge(own: str, theirs: str, term: dict[str, Any]) -> dict[str, str]:
    """What a term does on a pair: ``dict(outcome=...)``, with ``why`` unless it is ``'ok'``."""
    pupil = copy.deepcopy(student(own))
    try:
        mmkd_plugin.attach(
            pupil,
            teacher(theirs),
            [dict(term, teacher='detections', name='by')],
            probe_size=(IMAGE, IMAGE),
        )
    except ValueError as error:
        return dict(outcome='refused', why=last_line(error))
    except Exception as error:
        return dict(outcome='crashed', why=last_line(error))
    try:
        return dict(outcome=_step(pupil))
    except Exception as error:
        return dict(outcome='crashed', why=last_line(error))
    finally:
        mmkd_plugin.detach(pupil)


def _step(pupil: nn.Module) -> str:
    torch.manual_seed(0)  # RoI samplers draw
    losses = pupil(**batch(pupil), mode='loss')
    pupil.distiller.raise_if_not_finite()
    parameters = [p for p in pupil.parameters() if p.requires_grad]
    found = torch.autograd.grad(losses['loss_by'], parameters, allow_unused=True)
    size = math.sqrt(sum(float(g.double().pow(2).sum()) for g in found if g is not None))
    value = float(losses['loss_by'])
    if not (math.isfinite(value) and math.isfinite(size)):
        raise ArithmeticError(f'the loss is {value}, the norm of its gradient {size}')
    if size == 0 and losses['by_rows'] > 0 and value > 0:
        raise ArithmeticError(f'the loss is {value}, and no gradient reaches the student')
    return 'ok' if size > 0 else 'silent'


def row(own: str, teachers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each teacher does to one kind of student, by teacher and term."""
    return {
        theirs: {name: judge(own, theirs, term) for name, term in TERMS.items()}
        for theirs in teachers
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument('--out', type=Path, default=RESULTS, help='file of results (%(default)s)')
    parser.add_argument('--students', nargs='+', choices=KINDS, default=list(KINDS))
    parser.add_argument('--teachers', nargs='+', choices=KINDS, default=list(KINDS))
    parser.add_argument('--again', action='store_true', help='also what the file has already')
    parser.add_argument('--list', action='store_true', help='only print the kinds')
    args = parser.parse_args(argv)
    if args.list:
        print('\n'.join(f'{kind}: {config}' for kind, config in KINDS.items()))
        return 0
    content = content_of(args.out, args.again, dict(kinds={}, rows={}))
    content['kinds'] = KINDS
    quiet()
    for own in args.students:
        known = {} if args.again else content['rows'].get(own, {})
        wanted = [theirs for theirs in args.teachers if theirs not in known]
        if not wanted:
            continue
        begin = time.perf_counter()
        made = content['rows'].get(own, {}) | row(own, wanted)
        content['rows'][own] = {kind: made[kind] for kind in KINDS if kind in made}
        content['rows'] = {k: content['rows'][k] for k in KINDS if k in content['rows']}
        write_json(args.out, content)
        told = [' '.join([t, *(x['outcome'] for x in made[t].values())]) for t in wanted]
        print(f'{own} <- {"; ".join(told)} ({time.perf_counter() - begin:.0f} s)', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
