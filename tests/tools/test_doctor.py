"""The command `mmkd doctor`: its exit status, its report, mistakes on the command line."""

from __future__ import annotations

import json

import pytest
from examined_pairs import classifier, save
from mmengine.config import Config

from mmkd_plugin.cli.doctor import main
from mmkd_plugin.teacher import build_model


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Configs of a plain student, its teacher and the pair, and the teacher's random weights."""
    folder = tmp_path_factory.mktemp('doctor')
    student, teacher = classifier(3, 40), classifier(8)
    Config(student).dump(folder / 'student.py')
    Config(teacher).dump(folder / 'teacher.py')
    save(build_model(Config(teacher)), folder / 'random.pth')
    entry = dict(config=str(folder / 'teacher.py'), checkpoint=str(folder / 'random.pth'))
    hook = dict(type='mmkd_plugin.DistillHook', teacher=entry, recipe='kd')
    Config(dict(student, custom_hooks=[hook])).dump(folder / 'pair.py')
    return folder


def run(*arguments) -> int:
    return main([*map(str, arguments), '--images', '24', '--batches', '1'])


def teacher_of(files) -> list:
    return ['--teacher', files / 'teacher.py', '--teacher-checkpoint', files / 'random.pth']


@pytest.mark.parametrize('distilled', [True, False])
def test_an_error_is_status_1_and_stands_in_both_reports(files, tmp_path, capsys, distilled):
    report = tmp_path / 'report.json'
    config = [files / 'pair.py'] if distilled else [files / 'student.py', *teacher_of(files)]
    assert run(*config, '--json', report) == 1
    content = json.loads(report.read_text())
    assert [f['code'] for f in content['findings']] == ['untrained-teacher']
    assert content['verdict']['answer'] == 'does not help'
    shown = capsys.readouterr().out
    assert 'untrained-teacher' in shown and 'Verdict: does not help' in shown and 'kd' in shown
    assert 'init_weights' not in shown, 'what packages log is left out'


def test_status_0_without_errors(files, tmp_path, capsys):
    """A student that teaches itself has no teacher to look at."""
    cfg = Config(classifier(3, 40))
    term = dict(loss=dict(type='KDLoss'), student='cls_logits', begin=1, by_epoch=True)
    cfg.custom_hooks = [
        dict(type='mmkd_plugin.DistillHook', teacher='previous_epoch', terms=[term])
    ]
    cfg.dump(tmp_path / 'self.py')
    assert run(tmp_path / 'self.py') == 0
    assert 'cannot tell' in capsys.readouterr().out


def test_what_cannot_be_attached_is_no_traceback(files, capsys):
    options = ['--cfg-options', 'custom_hooks.0.recipe=gdd+mask']
    assert run(files / 'pair.py', *options) == 1
    options = ['--cfg-options', 'model.backbone.depth=9']
    assert run(files / 'pair.py', *options) == 1
    captured = capsys.readouterr()
    assert captured.out.count('refused') >= 2 and 'Traceback' not in captured.out + captured.err


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['student.py'], '0 DistillHooks'),
        (['missing.py'], 'missing.py'),
        (['pair.py', '--images', '0'], '--images 0'),
        (['pair.py', '--batches', '-1'], '--batches -1'),
        (['pair.py', '--student-checkpoint', 'nowhere.pth'], 'nowhere.pth'),
        (['pair.py', '--baseline', 'nowhere.py'], 'nowhere.py'),
        (['pair.py', '--json', 'no/folder/report.json'], 'no/folder'),
        (['pair.py', '--teacher', 'teacher.py', '--teacher-random'], 'already has a DistillHook'),
        (['student.py', '--recipe', 'kd'], 'without --teacher'),
        (['pair.py', '--recipe', 'gddd'], 'gddd'),
    ],
)
def test_mistakes_are_status_2_in_one_line(files, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(files)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.startswith('error: ')
    assert captured.err.count('\n') == 1 and not captured.out


def test_an_unknown_option_is_status_2(files):
    with pytest.raises(SystemExit) as end:
        main([str(files / 'pair.py'), '--image', '3', '--nonsense'])
    assert end.value.code == 2
