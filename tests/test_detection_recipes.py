"""Recipes on the logits of detectors and segmenters: numbers, what does not suit, joined ones."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from detectors import FAMILIES, Family, model_config
from mmengine.config import Config
from torch import nn

import mmkd_plugin
from mmkd_plugin import recipes
from mmkd_plugin.recipes import detection
from mmkd_plugin.registry import build_loss
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher import build_model
from mmkd_plugin.views import HeadSpec, make_view, view_names, views

SEGMENTER = 'PSPNet'


@cache
def detector(family: str) -> nn.Module:
    """A tiny one; recipes only look at it."""
    return fresh(family)


def fresh(family: str, width: int = 16) -> nn.Module:
    if family != SEGMENTER:
        model = model_config(family, width)
        return build_model(Config(dict(model=model, default_scope='mmdet')))
    pytest.importorskip('mmseg')
    pytest.importorskip('ftfy')
    norm = dict(type='BN')
    head = dict(in_channels=64, num_classes=5, norm_cfg=norm, loss_decode=LOSS_DECODE)
    model = dict(
        type='EncoderDecoder',
        backbone=dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8, norm_cfg=norm),
        decode_head=dict(type='PSPHead', channels=8, pool_scales=(1, 2), **head),
    )
    return build_model(Config(dict(model=model, default_scope='mmseg')))


LOSS_DECODE = dict(type='CrossEntropyLoss', use_sigmoid=False)
KD = dict(type='KDLoss', temperature=1.0)
DKD = dict(type='DKDLoss', temperature=1.0, alpha=1.0, beta=0.25)
LOCA = dict(type='LoCaLoss', temperature=1.0, alpha=0.9)
CKD = dict(type='CKDLoss', temperature=1.0)


def resolved(name: str, student: str, teacher: str | None = None, **length: int) -> list[dict]:
    pair = detector(student), detector(teacher or student)
    plan = recipes.resolve(name, *pair, length, weights='published')
    assert plan['task_weight'] == 1.0
    return plan['terms']


@pytest.mark.parametrize(
    'name, family, loss, weight, select',
    [
        ('kd', 'Faster R-CNN', KD, 1.0, None),
        ('kd', 'Cascade R-CNN', KD, 1.0, None),
        ('kd', 'GFL', KD, 1.0, None),
        ('kd', 'YOLOX', KD, 1.0, None),
        ('kd', 'SOLO', KD, 1.0, None),
        ('kd', 'Deformable DETR', KD, 2.0, None),
        ('kd', SEGMENTER, KD, 1.0, None),
        ('dkd', 'Mask R-CNN', DKD, 1.0, None),  # mdistiller
        ('dkd', SEGMENTER, DKD, 1.0, None),
        ('dkd-loca', 'Faster R-CNN', dict(DKD, calibrate=0.9), 1.0, None),
        ('loca', 'Faster R-CNN', LOCA, 1.0, None),
        ('loca', 'FCOS', LOCA, 1.0, None),
        ('loca', 'Deformable DETR', LOCA, 2.0, None),
        ('ckd', 'Faster R-CNN', CKD, 0.1, None),  # official code
        ('ckd', 'RetinaNet', CKD, 10.0, None),  # chosen on digits
    ],
)
def test_numbers(name, family, loss, weight, select):
    (term,) = resolved(name, family)
    assert term['loss'] == loss
    assert term['weight'] == weight and term.get('select') == select
    assert term['student'] == ('seg_logits' if family == SEGMENTER else 'cls_logits')
    assert 'teacher' not in term, 'both heads have the same rows'
    assert term['name'] == name.replace('-', '_')


@pytest.mark.parametrize(
    'length, begin',
    [
        (dict(epochs=5), dict(begin=2, by_epoch=True)),
        (dict(iterations=40000), dict(begin=16000)),
        (dict(epochs=2), {}),
        ({}, {}),
    ],
)
def test_pixels_are_distilled_once_the_student_knows_some(length, begin):
    for name in ('kd', 'dkd', 'loca', 'dkd-loca', 'ipwd', 'ipwd-inverse', 'ckd'):
        (term,) = resolved(name, SEGMENTER, **length)
        own = {key: term[key] for key in ('begin', 'by_epoch') if key in term}
        assert own == ({} if name == 'ckd' else begin), name
    for name, family in (('kd', 'Faster R-CNN'), ('kd', 'GFL'), ('kd-masks', 'Mask R-CNN')):
        (term,) = resolved(name, family, **length)
        assert 'begin' not in term


def test_ipwd_on_pixels_is_plain_kd_at_first():
    """Its auxiliary layer learns only while the term acts, which begins late there."""
    for name in ('ipwd', 'ipwd-inverse'):
        (term,) = resolved(name, SEGMENTER, epochs=30)
        assert term['begin'] == 12 and term['loss']['start_epoch'] == 18
        (term,) = resolved(name, SEGMENTER, iterations=900)
        assert term['begin'] == 360 and term['loss']['start_epoch'] == 0


def test_kd_of_detectors_finds_its_weight():
    for family in ('Faster R-CNN', 'GFL', 'Deformable DETR'):
        (term,) = recipes.resolve('kd', detector(family), detector(family))['terms']
        assert term['weight'] == 'auto'


@pytest.mark.parametrize(
    'length, start',
    [(dict(epochs=24), 8), (dict(epochs=12), 4), (dict(iterations=9000), 0), ({}, 0)],
)
def test_ipwd_waits_for_a_third_of_the_epochs(length, start):
    for name, ratio in (('ipwd', 'kd_over_cls'), ('ipwd-inverse', 'cls_over_kd')):
        (term,) = resolved(name, 'Faster R-CNN', **length)
        numbers = dict(temperature=1.0, ratio=ratio, normalize='batch_mean', clip_max=5.0)
        assert term['loss'] == dict(type='IPWDLoss', **numbers, start_epoch=start)


@pytest.mark.parametrize(
    'student, teacher',
    [('SOLO', 'Mask R-CNN'), ('Mask R-CNN', 'SOLO'), ('CondInst', 'Mask2Former')],
)
def test_masks_cross_families_by_detections(student, teacher):
    (masks,) = resolved('kd-masks', student, teacher)
    assert (masks['student'], masks['teacher']) == ('mask_logits', 'detections')
    (same,) = resolved('kd-masks', student)
    assert 'teacher' not in same


def test_companions_of_boxes_and_masks():
    (bins,) = resolved('kd-bins', 'GFL')
    assert bins['loss'] == dict(type='KDLoss', temperature=10.0)  # LD
    summed = dict(by='positive', weights='student_score', reduction='sum')
    assert (bins['student'], bins['select']) == ('dfl_logits', summed)
    assert bins['weight'] == pytest.approx(0.25 / 4 / 17)
    for family in ('Mask R-CNN', 'SOLO', 'CondInst'):
        (masks,) = resolved('kd-masks', family)
        assert (masks['loss'], masks['student'], masks['weight']) == (KD, 'mask_logits', 1.0)


@pytest.mark.parametrize(
    'name, family, said',
    [
        ('dkd', 'GFL', 'needs a softmax over the classes.*GFL .bbox_head. has a sigmoid.*loca'),
        ('dkd-loca', 'Deformable DETR', 'needs a softmax over the classes'),
        ('dkd', 'SOLO', 'needs a softmax over the classes'),
        ('kd-bins', 'RetinaNet', "no view 'dfl_logits' fits RetinaNet"),
        ('kd-masks', 'Faster R-CNN', "no view 'mask_logits' fits FasterRCNN"),
    ],
)
def test_methods_that_do_not_suit(name, family, said):
    with pytest.raises(ValueError, match=f"recipe '{name}'.*{said}"):
        resolved(name, family)


@pytest.mark.parametrize(
    'teacher, student, by_boxes',
    [
        ('Faster R-CNN', 'GFL', True),
        ('Cascade R-CNN', 'FCOS', True),
        ('GFL', 'FCOS', False),  # one prediction at each position of the same strides
        ('RetinaNet', 'GFL', False),  # the best of nine anchors
        ('GFL', 'RetinaNet', True),  # which of nine anchors?
        ('RetinaNet', 'RTMDet', False),  # the strides 8 to 32 are there
        ('RTMDet', 'RetinaNet', True),  # no 64 and 128
        ('Deformable DETR', 'FCOS', True),
        ('GFL', 'Faster R-CNN', True),
        ('Faster R-CNN', 'Cascade R-CNN', True),  # another number of stages
        ('Faster R-CNN', 'Deformable DETR', True),
        ('Faster R-CNN', 'SOLO', True),
        ('Mask2Former', 'GFL', True),
    ],
)
def test_a_teacher_with_other_rows_speaks_through_its_boxes(teacher, student, by_boxes):
    for name in ('kd', 'loca', 'ckd', 'ipwd'):
        if name == 'ckd' and by_boxes:  # positions in one box would be compared with copies
            with pytest.raises(TapError, match='CKDLoss would contrast copies'):
                resolved(name, student, teacher)
            continue
        (term,) = resolved(name, student, teacher)
        assert term['student'] == 'cls_logits'
        assert term.get('teacher') == ('detections' if by_boxes else None)


@pytest.mark.parametrize(
    'teacher, student, said',
    [
        (SEGMENTER, 'GFL', 'cannot pair the heads.*positions of a dense head.*pixels'),
        ('GFL', SEGMENTER, 'cannot pair the heads.*pixels.*positions of a dense head'),
    ],
)
def test_teachers_that_cannot_speak(teacher, student, said):
    with pytest.raises(ValueError, match=said):
        resolved('kd', student, teacher)


def test_joined_recipes():
    terms = resolved('gdd+kd+kd-bins', 'GFL')
    assert [term.get('name', 'gdd') for term in terms] == ['gdd', 'kd', 'kd_bins']
    published = recipes.resolve('gdd', detector('GFL'), detector('GFL'), weights='published')
    assert terms[0] == published['terms'][0]
    assert recipes.describe('gdd+kd') == f'{recipes.describe("gdd")}; {recipes.describe("kd")}'
    told = recipes.source('gdd+kd-bins', detector('GFL'))
    assert told == 'gdd: official code, RepPoints; kd-bins: LD'


@pytest.mark.parametrize(
    'name, said',
    [
        ('gdd+kdd', "no recipe 'kdd'; nearest: 'kd'"),
        ('gdd+', "no recipe ''"),
        ('gdd+gdd-shared', "'gdd.gdd-shared' has two terms 'gdd'.*loss_gdd"),
        ('kd+kd', "two terms 'kd'"),
        ('gdd+funmatch', 'funmatch, which is a way to train'),
    ],
)
def test_names_that_cannot_be_joined(name, said):
    for call in (
        lambda: recipes.describe(name),  # what the command line asks before anything is built
        lambda: resolved(name, 'GFL'),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_of_methods_that_weigh_the_student_differently_the_smallest_wish_counts():
    classifier = nn.Module()
    classifier.backbone, classifier.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
    plan = recipes.resolve('gdd+kd', classifier, classifier)
    assert set(plan) == {'terms', 'task_weight'}
    wishes = recipes.choose('gdd+kd', classifier, classifier).task_weights
    assert wishes == dict(gdd=1.0, kd=pytest.approx(0.1))
    assert plan['task_weight'] == pytest.approx(0.1)
    assert [term['weight'] for term in plan['terms']] == ['auto', 0.9]
    plan = recipes.resolve('kd+loca', classifier, classifier)
    assert [term['name'] for term in plan['terms']] == ['kd', 'loca']
    assert plan['task_weight'] == pytest.approx(0.1)


FITS = {
    'Faster R-CNN': ('kd', 'dkd', 'loca', 'dkd-loca', 'ckd', 'ipwd', 'ipwd-inverse', 'boxes'),
    'Mask R-CNN': ('kd-masks', 'kd'),
    'Cascade R-CNN': ('kd', 'dkd', 'ipwd', 'boxes'),
    'GFL': ('kd', 'loca', 'ckd', 'ipwd', 'ipwd-inverse', 'kd-bins', 'boxes'),
    'SOLO': ('kd', 'loca', 'ckd', 'ipwd', 'kd-masks'),
    'Deformable DETR': ('kd', 'loca', 'ckd', 'ipwd', 'boxes'),
    SEGMENTER: ('kd', 'dkd', 'loca', 'dkd-loca', 'ckd', 'ipwd', 'ipwd-inverse'),
}


@pytest.mark.parametrize('family, name', [(f, n) for f, names in FITS.items() for n in names])
def test_every_recipe_can_be_attached(family, name):
    """What `resolve` gives is a term that both models take."""
    plan = recipes.resolve(name, detector(family), detector(family), dict(epochs=12))
    (term,) = plan['terms']
    assert type(build_loss(term['loss'], 'term')).__name__ == term['loss']['type']
    assert recipes.source(name, detector(family))
    assert recipes.describe(name)
    distiller = mmkd_plugin.attach(student := fresh(family), fresh(family), plan['terms'])
    assert {row.term for row in distiller.plan()} == {term['name']}
    mmkd_plugin.detach(student)


def test_every_recipe_says_something_of_every_kind_it_serves():
    for name, recipe in detection.RECIPES.items():
        assert recipe.sources and set(recipe.sources) <= set(detection.ROWS), name
        for kind in recipe.sources:
            head = HeadSpec('head', kind, 'softmax', 17)
            assert recipe.term(head, dict(epochs=12))['weight'] > 0


DOCS = Path(__file__).resolve().parents[1] / 'docs' / 'coverage.md'
ROW = re.compile(r'^\| ([^|]+) \| ([^|]+) \| (softmax|sigmoid|–) \| ([^|]+) \| ([^|]+) \|$', re.M)
PANOPTIC = 'Panoptic FPN'


@pytest.mark.parametrize('family', [*FAMILIES, PANOPTIC, SEGMENTER])
def test_the_table_in_the_docs(family, monkeypatch):
    """Views and recipes of each family as `docs/coverage.md` has them."""
    rows = {row[0].split(',')[0].strip(): row[1:] for row in ROW.findall(DOCS.read_text())}
    assert set(rows) == {*FAMILIES, PANOPTIC, SEGMENTER}
    if family == PANOPTIC:
        config = 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
        monkeypatch.setitem(FAMILIES, PANOPTIC, Family(config, masks=True))
    model = fresh(family)
    kinds, activation, others, names = (cell.strip() for cell in rows[family])
    told = set(re.findall('`([^`]+)`', others))
    fitting = {n for n in view_names() if any(cls.fits(model) for cls in views(n))}
    assert 'cls_logits' in fitting
    specs = make_view('cls_logits', model).specs(model)
    assert {spec.activation for spec in specs} == {activation}
    assert {spec.kind for spec in specs} == {KINDS[kinds.split()[0].strip(',')]}
    assert specs[0].kind != 'roi' or (len(specs) == 3) == ('3 stages' in kinds)
    assert specs[0].priors == (9 if '9 anchors' in kinds else 1)
    assert told == fitting - {'cls_logits'}
    suiting = [name for name in detection.RECIPES if suits(name, model)]
    short = [name for name in suiting if name not in ('dkd-loca', 'ipwd-inverse')]
    assert (names if names != '–' else '') == ', '.join(short)
    assert ('dkd' in suiting) == ('dkd-loca' in suiting)
    assert ('ipwd' in suiting) == ('ipwd-inverse' in suiting)


KINDS = dict(positions='dense', cells='dense', RoIs='roi', queries='query', pixels='pixel')


def suits(name: str, model: nn.Module) -> bool:
    try:
        recipes.resolve(name, model, model)
    except ValueError:
        return False
    return True
