"""Heads whose forward returns something else in eval mode, and how a teacher runs them.

The list `TRAIN_FORM_HEADS` is data and mmdet moves on, so the first tests read mmdet's sources and
compare. The others run such heads as a teacher does and compare with the student in training.
"""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import mmdet
import pytest
import torch
from detectors import IMAGE, model_config
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from mmkd_plugin.taps.partial_forward import TRAIN_FORM_HEADS, PartialForward
from mmkd_plugin.teacher import Teacher

FOLDERS = ('dense_heads', 'roi_heads', 'seg_heads')

# Classes that branch but must not be listed, each with the reason.
NOT_LISTED = {
    'ROIGather': 'the branch is a dropout, and dropout stays off in a teacher',
    'DDQDETRHead': 'splits off dense queries that only its detector in train mode adds',
    'GridHead': 'part of a RoI head, where taps are refused',
    'YOLACTProtonet': 'runs after the box head has taken positives from ground truth',
}

# family -> the head that is compared
HEADS = {
    'RepPoints': 'bbox_head',
    'VFNet': 'bbox_head',
    'FCOS': 'bbox_head',
    'CondInst': 'bbox_head',
    'SOLO': 'mask_head',
}


def mmdet_heads() -> tuple[dict[str, set[str]], set[str]]:
    """Reads mmdet's sources.

    Returns:
        The base classes of every class in the folders of heads, and the names of those classes
        whose own forward code reads `self.training`.
    """
    bases, branching = {}, set()
    for folder in FOLDERS:
        for file in (Path(mmdet.__file__).parent / 'models' / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.ClassDef):
                    continue
                bases[node.name] = {b.id for b in node.bases if isinstance(b, ast.Name)}
                if any(_is_forward(f) and _reads_training(f) for f in node.body):
                    branching.add(node.name)
    return bases, branching


def _is_forward(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith('forward')


def _reads_training(function: ast.FunctionDef) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == 'training'
        and isinstance(node.value, ast.Name)
        and node.value.id == 'self'
        for node in ast.walk(function)
    )


def _covered(name: str, bases: dict[str, set[str]]) -> bool:
    """Whether `name` or one of its base classes is listed, as `set_inference` asks."""
    if name in TRAIN_FORM_HEADS:
        return True
    return any(_covered(base, bases) for base in bases.get(name, ()))


def test_every_branching_head_is_listed():
    bases, branching = mmdet_heads()
    assert {'RepPointsHead', 'VFNetHead', 'FCOSHead', 'SOLOHead'} <= branching, (
        'the search is blind'
    )
    missing = {n for n in branching - NOT_LISTED.keys() if not _covered(n, bases)}
    assert not missing, (
        f'{sorted(missing)} return something else in eval mode: add them to TRAIN_FORM_HEADS in '
        'mmkd_plugin/execution.py, or to NOT_LISTED here with the reason.'
    )


def test_every_listed_head_branches():
    bases, branching = mmdet_heads()
    stale = set(TRAIN_FORM_HEADS) - branching
    assert not stale, f'{sorted(stale)} do not branch on self.training in this mmdet; remove them.'
    here = NOT_LISTED.keys() & bases.keys()  # some came with a later mmdet
    assert not here - branching, f'{sorted(here - branching)} of NOT_LISTED no longer branch.'


@pytest.fixture(scope='module', autouse=True)
def mmdet_modules():
    with DefaultScope.overwrite_default_scope('mmdet'):
        register_all_modules(init_default_scope=False)
        yield


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(model_config(family))
    model.init_weights()
    return model


def head_output(model: nn.Module, head: str):
    """What the head returns when the model is run as far as the head."""
    seen = []
    handle = model.get_submodule(head).register_forward_hook(lambda *args: seen.append(args[-1]))
    image = torch.randn(1, 3, 2 * IMAGE, 2 * IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        PartialForward(model, [head])(image)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def same(a, b) -> bool:
    """Whether two nested outputs have the same structure, shapes and values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.allclose(a, b)
    if type(a) is not type(b) or len(a) != len(b):
        return False
    return all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('family', HEADS)
def test_teacher_head_gives_the_training_form(family):
    student = build(family).train()
    expected = head_output(student, HEADS[family])
    teacher = Teacher(copy.deepcopy(student)).model
    assert same(head_output(teacher, HEADS[family]), expected)

    # the head does differ in plain eval mode, else the comparison above would show nothing
    assert not same(head_output(student.eval(), HEADS[family]), expected)


@pytest.mark.parametrize('family', HEADS)
def test_only_the_head_itself_is_in_train_mode(family):
    model = build(family)
    # one layer of each kind inside the head, whether this family has it or not
    head = model.get_submodule(HEADS[family])
    head.extra = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(4), DropPath(0.5))
    model.train()
    teacher = Teacher(model).model
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, _DropoutNd, DropPath)
    stochastic = [m for m in teacher.modules() if isinstance(m, kinds)]
    assert len(stochastic) > 20
    assert not [m for m in stochastic if m.training]
    assert [n for n, m in teacher.named_modules() if m.training] == [HEADS[family]]
