"""Pairs of every family that are wired right give no error, whatever their head is."""

from __future__ import annotations

import copy

import examined_pairs as pairs
import pytest
from detectors import FAMILIES, model_config, skip_if_too_large
from examined_pairs import CLASSES, diagnose, distilled, found
from mmengine.logging import MessageHub

from mmkd_plugin import recipes

FAST = ('RTMDet', 'YOLOX')
# Fewer than the doctor judges a teacher by: these have no better answers than chance.
FEW = dict(images=6, batches=2)
# Beside gdd; of Mask2Former no recipe reads the logits (docs/coverage.md).
LOGITS = {'SOLO': '+kd+kd-masks', 'Mask R-CNN': '+kd+kd-masks', 'Mask2Former': ''}
ALL = [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in FAMILIES]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return pairs.draw_scenes(tmp_path_factory.mktemp('scenes'), dict(train=16, val=6))


@pytest.mark.parametrize('family', ALL)
def test_a_pair_of_one_family(family, scenes, tmp_path):
    # Of a new hub: YOLOX and TOOD look there for the iteration, and no run was before.
    hub = MessageHub.get_instance(f'no run yet, {family}')
    skip_if_too_large(family)
    student, teacher = (
        pairs.detector(
            copy.deepcopy(model_config(family, width, len(CLASSES))),
            scenes,
            masks=FAMILIES[family].masks,
        )
        for width in (16, 32)
    )
    file = pairs.unlike_new(teacher, tmp_path / 'teacher.pth')
    recipe = f'gdd{LOGITS.get(family, "+kd")}'
    report = diagnose(distilled(student, teacher, file, recipe=recipe), **FEW)
    assert not found(report, 'error') and not found(report, 'note'), report.findings
    assert list(report.terms) == recipes.term_names(recipe)
    assert all(numbers.gradient_ratio > 0 for numbers in report.terms.values())
    assert report.teacher and report.cost['distilled_step_s'] > 0
    assert not hub.runtime_info
