"""tools/inspect_model.py on small variants of mmdet's GFL."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from detectors import model_config
from mmengine.config import Config
from segmenters import segmenter, segmenter_config

from mmkd_plugin.cli import inspect_model
from mmkd_plugin.teacher import build_model

CONFIG = """
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels={width}, start_level={start},
              num_outs={levels}),
    bbox_head=dict(in_channels={width}, feat_channels=32, stacked_convs=1,
                   anchor_generator=dict(strides=[8, 16, 32, 64, 128][:{levels}])))
"""


@pytest.fixture
def tool() -> ModuleType:
    return inspect_model


@pytest.fixture(scope='module')
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('inspect')
    for name, width, start, levels in (
        ('student', 32, 1, 5),
        ('wide', 64, 1, 5),
        ('fewer', 32, 1, 3),
        ('finer', 32, 0, 5),
    ):
        text = CONFIG.format(width=width, start=start, levels=levels)
        (folder / f'{name}.py').write_text(text)
    return folder


def as_json(tool, capsys, *arguments) -> dict:
    tool.main([*map(str, arguments), '--size', '128', '192', '--json'])
    return json.loads(capsys.readouterr().out)


def test_shapes_strides_and_calls(tool, configs, capsys):
    found = as_json(tool, capsys, configs / 'student.py')
    places = {p['path']: p['student'] for p in found['places']}
    assert places['neck.fpn_convs.1.conv']['shape'] == [1, 32, 8, 12]
    assert places['neck.fpn_convs.1.conv']['stride'] == 16
    assert places['neck.fpn_convs.1.conv']['kind'] == 'Conv2d'
    assert places['bbox_head.gfl_cls']['calls'] == 5, 'one head, called for each level'
    assert [s[1:] for s in places['neck']['shapes']][:2] == [[32, 16, 24], [32, 8, 12]]
    assert all(p['teacher'] is None for p in found['places'])


@pytest.mark.parametrize('teacher, mark', [('student', '='), ('wide', '~'), ('finer', '!')])
def test_pairs_are_marked(tool, configs, capsys, teacher, mark):
    found = as_json(
        tool, capsys, configs / 'student.py', '--teacher', configs / f'{teacher}.py',
        '--filter', 'neck.fpn_convs.*.conv',
    )  # fmt: skip
    places = [p for p in found['places'] if p['student'] and p['teacher']]
    assert places and {p['mark'] for p in places} == {mark}


def test_other_calls_of_a_shared_head_are_no_match(tool, configs, capsys):
    found = as_json(tool, capsys, configs / 'student.py', '--teacher', configs / 'fewer.py')
    marks = {p['path']: p['mark'] for p in found['places']}
    assert marks['bbox_head.gfl_cls'] == '!'
    assert marks['neck.fpn_convs.4.conv'] == '', 'the teacher has no such place'
    gdd = found['recipes'][0]
    assert gdd['student'] == gdd['teacher'] == dict(path='neck', levels=[0, 1, 2])


def test_recipes_show_which_levels_they_pair(tool, configs, capsys):
    arguments = configs / 'student.py', '--teacher', configs / 'finer.py', '--filter', 'neck'
    found = as_json(tool, capsys, *arguments)
    gdd = found['recipes'][0]
    assert (gdd['student']['levels'], gdd['teacher']['levels']) == ([0, 1, 2, 3], [1, 2, 3, 4])
    tool.main([*map(str, arguments), '--size', '128', '192'])
    assert 'neck (levels [0, 1, 2, 3]) <- neck (levels [1, 2, 3, 4])' in capsys.readouterr().out


def test_views_tell_what_their_rows_are(tool, configs, capsys):
    found = as_json(tool, capsys, configs / 'student.py')
    views = {v['view']: v['heads'] for v in found['views']}
    assert set(views) == {'cls_logits', 'boxes', 'dfl_logits'}, "detections are a teacher's"
    (classes,), (bins,) = views['cls_logits'], views['dfl_logits']
    assert (classes['num_classes'], classes['activation'], classes['priors']) == (80, 'sigmoid', 1)
    assert (bins['num_classes'], bins['activation'], bins['priors']) == (17, 'softmax', 4)
    tool.main([str(configs / 'student.py'), '--size', '128', '192', '--filter', 'neck'])
    text = capsys.readouterr().out
    assert 'bbox_head: 80 classes, sigmoid' in text
    assert 'bbox_head boxes: 4 sides of a box' in text and 'none' not in text


def test_the_views_of_both_are_listed(tool, configs, capsys):
    arguments = configs / 'student.py', '--teacher', configs / 'wide.py'
    found = as_json(tool, capsys, *arguments)
    assert [v['view'] for v in found['teacher_views']] == ['cls_logits', 'boxes', 'dfl_logits']
    tool.main([*map(str, arguments), '--filter', 'neck'])
    text = capsys.readouterr().out
    student, teacher = text.index("Views of the student's"), text.index("Views of the teacher's")
    line = text.index("(a teacher may also be read by its boxes: teacher='detections')")
    assert student < teacher < line and "(teacher='NAME' in a term)" in text[teacher:]


def model(family):
    if family == 'PSPNet':
        pytest.importorskip('mmseg')
        pytest.importorskip('ftfy')
        return segmenter(segmenter_config())
    return build_model(Config(dict(model=model_config(family), default_scope='mmdet')))


@pytest.mark.parametrize(
    ('student', 'teacher', 'open_to'),
    [
        ('GFL', None, True),
        ('GFL', 'Faster R-CNN', True),
        ('GFL', 'Deformable DETR', True),
        ('Faster R-CNN', 'GFL', True),
        ('Deformable DETR', None, True),
        ('PSPNet', None, False),
        ('PSPNet', 'GFL', False),
    ],
)
def test_detections_are_offered_where_they_fit(tool, student, teacher, open_to):
    own = model(student)
    assert tool.takes_detections(own, own if teacher is None else model(teacher)) is open_to


def test_detections_are_not_mentioned_where_they_do_not_fit(tool, tmp_path, capsys):
    pytest.importorskip('mmseg')
    pytest.importorskip('ftfy')
    Config(dict(model=segmenter_config(), default_scope='mmseg')).dump(tmp_path / 'pspnet.py')
    tool.main([str(tmp_path / 'pspnet.py'), '--size', '128', '128', '--filter', 'backbone'])
    text = capsys.readouterr().out
    assert 'cls_logits' in text and 'detections' not in text


def test_a_recipe_without_its_view_says_so_in_a_few_words(tool, configs, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    tool.main([str(configs / 'student.py'), '--size', '128', '192', '--filter', 'neck'])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert '  kd-masks does not fit: the student has no mask_logits' in lines
    found = tool.fitting_recipes(model('Mask R-CNN'), model('Faster R-CNN'))
    errors = {item['recipe']: item.get('error') for item in found}
    assert errors['kd'] is None and errors['kd-masks'] == 'the teacher has no mask_logits'


def test_recipes_say_where_they_tap(tool, configs, capsys):
    found = as_json(tool, capsys, configs / 'student.py', '--teacher', configs / 'wide.py')
    recipes = {r['recipe']: r for r in found['recipes']}
    assert set(recipes) >= {'gdd', 'gdd-shared', 'cwd', 'mgd', 'pkd'}
    assert recipes['gdd']['student'] == 'neck.fpn_convs.*.conv'
    assert recipes['gdd']['weight'] == 'auto' and recipes['gdd']['published'] == 65


def test_a_reason_that_recipes_share_is_told_once(tool, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '1000')
    folder = Path(__file__).resolve().parents[2] / 'configs/classification'
    student, teacher = folder / 'cifar100/resnet20.py', folder / 'digits/resnet14_digits.py'
    tool.main([str(student), '--teacher', str(teacher)])
    text = capsys.readouterr().out
    assert text.count('compares class logits, but the student has 100 classes') == 1
    assert 'kd, dkd, loca, dkd-loca, ckd, ipwd, ipwd-inverse, funmatch do not fit:' in text
    tool.main([str(student)])
    text = capsys.readouterr().out
    assert 'ipwd-inverse cls_logits' in text and 'not fit' not in text


def test_filter_and_depth(tool, configs, capsys):
    student = configs / 'student.py'
    paths = [p['path'] for p in as_json(tool, capsys, student, '--depth', '1')['places']]
    assert paths == ['backbone', 'neck', 'bbox_head']
    found = as_json(tool, capsys, student, '--filter', 'backbone.layer4.**')['places']
    assert len(found) > 5 and all(p['path'].startswith('backbone.layer4.') for p in found)
    with pytest.raises(SystemExit, match=r'nck\.\* matches .*begin with backbone, bbox_head, neck'):
        tool.main([str(student), '--filter', 'nck.*'])
    with pytest.raises(SystemExit, match='--depth is at least 1, not 0'):
        tool.main([str(student), '--depth', '0'])


@pytest.mark.parametrize('columns', [60, 80, 160])
def test_the_table_fits_the_terminal(tool, configs, capsys, monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    tool.main([str(configs / 'student.py'), '--teacher', str(configs / 'wide.py')])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= columns
    text = ''.join(line.split(' ')[0] for line in lines)
    assert 'neck.fpn_convs.0.conv' in text, 'a path may be folded but never cut'
    assert any('~' in line for line in lines)
