"""Recipes pair the levels of two necks by their strides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from toys import ToyDetector, runner_config, toy_batch, train

import mmkd_plugin
from mmkd_plugin import recipes
from mmkd_plugin.errors import ProbeError
from mmkd_plugin.taps.probe import Probe
from mmkd_plugin.taps.strides import matching, measured_strides


class Stages(BaseModule):
    """Maps of the strides 2, 4, 8, 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        steps = [nn.Conv2d(3 if i == 0 else width, width, 3, 2, 1) for i in range(4)]
        self.steps = nn.ModuleList(steps)

    def forward(self, x):
        maps = []
        for step in self.steps:
            x = step(x).relu()
            maps.append(x)
        return maps


class Projection(BaseModule):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 1)

    def forward(self, x):
        return self.conv(x)


class Neck(BaseModule):
    """Levels of some strides; with ``pooled`` one more that is picked from the last."""

    def __init__(self, width: int, out: int, strides: list[int], name: str, pooled: bool) -> None:
        super().__init__()
        self.stages = [stride.bit_length() - 2 for stride in strides]
        self.name, self.pooled = name, pooled
        setattr(self, name, nn.ModuleList(Projection(width, out) for _ in strides))

    def forward(self, maps):
        levels = [level(maps[i]) for level, i in zip(getattr(self, self.name), self.stages)]
        return tuple(levels + ([levels[-1][:, :, ::2, ::2]] if self.pooled else []))


@MODELS.register_module()
class Pyramid(ToyDetector):
    def __init__(self, strides=(4, 8), width=4, neck=6, name='out_convs', pooled=False, **kwargs):
        super().__init__(neck=neck, **kwargs)
        self.backbone = Stages(width)
        self.neck = Neck(width, neck, list(strides), name, pooled)


def pyramid(*strides: int, seed: int = 0, **kwargs) -> Pyramid:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Pyramid(strides, **kwargs)


def fpn(*strides: int, **kwargs) -> Pyramid:
    return pyramid(*strides, name='fpn_convs', **kwargs)


def taps(student, teacher, name='gdd', **kwargs) -> tuple:
    (term,) = recipes.resolve(name, student, teacher, **kwargs)['terms']
    return term['student'], term['teacher']


def neck(*levels: int) -> dict:
    return dict(path='neck', levels=list(levels))


FPN = 'neck.fpn_convs.*.conv'


@pytest.mark.parametrize(
    'own, theirs, expected',
    [
        ((8, 16, 32), (8, 16, 32), [0, 1, 2]),
        ((8, 16, 32, 64, 128), (4, 8, 16, 32), [1, 2, 3, None, None]),
        ((4, 8), (16, 32), [None, None]),
        ((8, 8, 16), (8, 8, 16), [0, 1, 2]),
        ((16, 8), (8, 16), [1, 0]),
        ((8, 8), (4, 8), [1, None]),
    ],
)
def test_levels_of_one_stride_are_matched_in_their_order(own, theirs, expected):
    assert matching(own, theirs) == expected


@pytest.mark.parametrize('size', [(64, 64), (60, 33), (96, 200)])
def test_strides_are_measured_at_any_size(size):
    assert measured_strides(pyramid(2, 4, 8, 16), 'neck', Probe(size), 'student') == [2, 4, 8, 16]


def test_what_gives_no_maps_has_no_strides():
    model = pyramid(4)
    model.neck.register_forward_hook(lambda module, args, output: [m.mean((2, 3)) for m in output])
    model.bbox_head = nn.Identity()
    assert measured_strides(model, 'neck', Probe((32, 32)), 'student') is None
    other = pyramid(4)
    assert taps(model, other) == ('neck', 'neck'), 'nobody can say more'


def test_measuring_leaves_no_trace():
    model = pyramid(4, 8, dropout=0.5).train()
    state = torch.get_rng_state()
    measured_strides(model, 'neck', Probe((32, 32)), 'student')
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    'student, teacher, expected',
    [
        (pyramid(4, 8), pyramid(4, 8, width=8), ('neck', 'neck')),
        (fpn(4, 8), fpn(4, 8, width=8), (FPN, FPN)),
        (fpn(4, 8), pyramid(4, 8), ('neck', 'neck')),
        (fpn(4, 8, pooled=True), pyramid(4, 8, 16), ('neck', 'neck')),
        # other numbers of levels
        (pyramid(4, 8, 16), pyramid(2, 4, 8, 16), (neck(0, 1, 2), neck(1, 2, 3))),
        (pyramid(2, 4, 8, 16), pyramid(4, 16), (neck(1, 3), neck(0, 1))),
        (fpn(4, 8, 16), fpn(2, 4, 8), (neck(0, 1), neck(1, 2))),
        (fpn(4, 8), pyramid(8), (neck(1), neck(0))),
        # as many levels, but of other strides
        (fpn(2, 4), fpn(4, 8), (neck(1), neck(0))),
        (pyramid(8, 4), pyramid(4, 8), (neck(0, 1), neck(1, 0))),
        # what a two-stage FPN pools from its last level says nothing new
        (pyramid(4, 8, 16), fpn(2, 4, 8, pooled=True), (neck(0, 1), neck(1, 2))),
        (fpn(4, 8, pooled=True), fpn(2, 4, 8, pooled=True), (neck(0, 1), neck(1, 2))),
    ],
)
def test_levels_of_equal_stride_are_paired(student, teacher, expected):
    assert taps(student, teacher, size=(64, 64)) == expected


def test_no_stride_in_common_is_refused_with_the_strides_of_both():
    with pytest.raises(ValueError, match=r'student \(Pyramid\) have strides 2, 4, .*teacher \(Pyr'):
        taps(pyramid(2, 4), pyramid(8, 16))
    with pytest.raises(ValueError, match='8, 16.*resize='):
        mmkd_plugin.attach(pyramid(2, 4), pyramid(8, 16), recipe='cwd')


def test_the_probe_of_a_recipe_has_the_size_that_was_said():
    student, seen = pyramid(4, 8), []
    student.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[2:]))
    taps(student, pyramid(8), size=(32, 48))
    taps(student, pyramid(8))
    assert [tuple(size) for size in seen] == [(32, 48), (256, 256)]
    with pytest.raises(ValueError, match=r'probe_size=\(32,\) must be'):
        taps(student, pyramid(8), size=(32,))

    def refuse(module, args):
        raise RuntimeError('a size of its own')

    teacher = pyramid(8)
    teacher.backbone.register_forward_pre_hook(refuse)
    with pytest.raises(ProbeError, match=r'teacher \(Pyramid\) failed .*32 x 48.*size of its own'):
        taps(student, teacher, size=(32, 48))


def test_padding_of_a_teacher_does_not_change_its_strides():
    preprocessor = dict(type='ImgDataPreprocessor', pad_size_divisor=32)
    teacher = pyramid(2, 4, 8, data_preprocessor=preprocessor)
    assert taps(pyramid(4, 8), teacher, size=(40, 40)) == (neck(0, 1), neck(1, 2))


def test_attached_levels_are_compared_where_they_belong():
    """The loss is that of the two levels, in this order, and of no other."""
    student, teacher = pyramid(4, 8, 16), pyramid(2, 4, 8, seed=1)
    distiller = mmkd_plugin.attach(student, teacher, recipe='pkd:1', probe_size=(64, 64))
    shapes = [(row.student_shape[2:], row.teacher_shape[2:]) for row in distiller.plan()]
    assert shapes == [((16, 16), (16, 16)), ((8, 8), (8, 8))]
    inputs, samples = toy_batch(2, size=32)
    loss = student(inputs, samples, mode='loss')['loss_pkd']
    own, theirs = student.extract_feat(inputs), teacher.extract_feat(inputs)
    pkd = distiller.terms[0].config.new_loss()
    expected = sum(pkd.compute(own[i], theirs[j]) for i, j in ((0, 1), (1, 2)))
    torch.testing.assert_close(loss, expected)


def run(work_dir: Path, hook: dict, **overrides) -> Config:
    """The config of a distilled run of (4, 8, 16) by (2, 4, 8)."""
    teacher = dict(
        config=dict(model=dict(type='Pyramid', strides=[2, 4, 8], width=8)), allow_random=True
    )
    hook = dict(type='mmkd_plugin.DistillHook', teacher=teacher, probe_size=(32, 32), **hook)
    model = dict(type='Pyramid', strides=[4, 8, 16])
    return runner_config(work_dir, hook, model=model, **overrides)


def losses(work_dir: Path) -> list:
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [row['loss_gdd'] for row in map(json.loads, lines) if 'loss_gdd' in row]


def test_a_run_says_what_it_paired_and_its_config_repeats_it(tmp_path):
    train(run(tmp_path / 'run', dict(recipe='gdd:5+cwd:1'), log_level='INFO'))
    (log,) = (tmp_path / 'run').rglob('*.log')
    told = (
        'Levels are paired by stride, 4, 8: 0, 1 of the student (Pyramid), whose strides are 4, 8, '
        '16, with 1, 2 of the teacher (Pyramid), whose strides are 2, 4, 8 (levels of the neck, '
        'from 0).'
    )
    assert told in log.read_text()
    plan = (tmp_path / 'run' / 'distillation.txt').read_text()
    assert plan.count(told) == 1, 'once, though two methods share it'
    assert 'neck (levels [0, 1]) <- neck (levels [1, 2])' in plan
    assert 'neck level 0 (1, 6, 8, 8) <- neck level 1 (1, 6, 8, 8)' in plan

    (dumped,) = (tmp_path / 'run').glob('*.py')
    again = Config.fromfile(dumped)
    (hook,) = again.custom_hooks
    assert 'recipe' not in hook
    assert [(t.student, t.teacher) for t in hook.terms] == [(neck(0, 1), neck(1, 2))] * 2
    again.work_dir = str(tmp_path / 'again')
    train(again)
    assert losses(tmp_path / 'run') == losses(tmp_path / 'again')


def test_lists_of_the_user_are_left_alone(tmp_path):
    """The other terms say as before what does not fit, and what they name is what they get."""
    term = dict(loss=dict(type='GDDLoss'), student='neck')
    with pytest.raises(ValueError, match='sizes differ'):
        train(run(tmp_path / 'sizes', dict(terms=[term])))
    term.update(student=neck(1), teacher=neck(2))
    runner = train(run(tmp_path / 'list', dict(terms=[term])))
    (hook,) = runner.cfg.custom_hooks
    assert hook.terms == [term] and losses(tmp_path / 'list')
