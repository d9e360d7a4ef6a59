"""What the tools say of mistakes, and the options for terms and teacher: runs on the digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import build_model

REPO = Path(__file__).resolve().parents[2]
DIGITS = REPO / 'configs/classification/digits'
STUDENT = str(DIGITS / 'resnet8-narrow_digits.py')
TEACHER = 'mmkd_plugin::classification/digits/resnet14_digits.py'
DEPTH_8 = {'model.backbone.depth': 8}
SHORT = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.num_samples=60']

pytest.importorskip('sklearn')


@pytest.fixture(scope='module')
def shallow(tmp_path_factory) -> Path:
    """Weights of a teacher that is not as deep as its config."""
    file = tmp_path_factory.mktemp('teacher') / 'shallow.pth'
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(load_model_config(TEACHER, DEPTH_8)).state_dict()), file)
    return file


def command(checkpoint: Path | str, work_dir: Path, *arguments: object) -> list[str]:
    command.count = getattr(command, 'count', 0) + 1
    names = [f'visualizer.name=m{command.count}', f'experiment_name=messages{command.count}']
    teacher = ['--teacher', TEACHER, '--teacher-checkpoint', checkpoint]
    options = ['--work-dir', work_dir, '--cfg-options', *SHORT, *names]
    return [str(a) for a in [STUDENT, *teacher, *options, *arguments]]


def refused(tool, argv: list[str], *words: str) -> str:
    with pytest.raises(SystemExit) as error:
        tool.main(argv)
    message = str(error.value.code)
    assert message.startswith('error: ') and '\n' not in message
    assert all(word in message for word in words), message
    return message


@pytest.mark.parametrize('debug', [False, True])
def test_an_error_of_the_pair_is_the_last_line_of_the_output(debug, shallow, tmp_path):
    """A teacher's file of another depth is found when the run has been built."""
    flags = ['--debug'] if debug else []
    done = subprocess.run(
        [sys.executable, str(REPO / 'tools/train.py'), *command(shallow, tmp_path, *flags)],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(REPO), *sys.path])),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert ('Traceback' in done.stdout) == debug
    last = done.stdout.rstrip().splitlines()[-1]
    assert 'teacher.checkpoint=' in last and 'shallow.pth' in last and 'entries' in last
    assert last.startswith('error: ') != debug


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--teacher', ''], ["teacher's config", 'empty']),
        (['--teacher', 'x' * 5000], ["teacher's config", '5000 characters']),
        (['--class-map', 'a=b'], ["--class-map 'a=b'", 'names', "'2,0,-1'"]),
        (['--teacher-cfg-options', 'modle.x=1'], ['teacher.cfg_options', "'modle'"]),
        (['--recipe', ''], ["no recipe ''"]),
        (['--init-student', ''], ["'' is no part"]),
        (['--term-options', 'kdd.weight=2'], ["no term is called 'kdd'", "nearest: 'kd'"]),
        (['--term-options', 'kd.wieght=2'], ["term_options['kd']", "'wieght'", "'weight'"]),
        (['--term-options', 'kd.loss.temprature=2'], ["term_options['kd'].loss", "'temperature'"]),
        (['--term-options', 'kd=2'], ["term_options['kd']=2", 'gdd.weight=20', 'dict']),
        (['--term-options', 'kd.weight=-1'], ["'kd'", 'weight=-1']),
        (['--weight', 'kdd=2'], ["no term is called 'kdd'", "nearest: 'kd'", 'The terms are kd']),
        (['--weight', 'kd'], ['--weight takes NAME=VALUE', "'kd'"]),
        (['--weight', 'kd=automatic'], ["--weight kd='automatic'", "nearest: 'auto'"]),
        (['--weights', 'kd=2'], ["--weights 'kd=2'", 'published or auto', '--weight NAME=VALUE']),
        (['--recipe', 'kd:x'], ["recipe 'kd:x'", "'x' is neither a number"]),
        (
            ['--weight', 'kd=2', '--term-options', 'kd.weight=3'],
            ["--weight gives the term 'kd' the weight 2", '--term-options 3'],
        ),
        (
            ['--cfg-options', 'custom_hooks.7.recipe=dkd'],
            ['custom_hooks', 'before --teacher adds', '--term-options'],
        ),
    ],
)
def test_mistakes_in_the_options(arguments, words, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tool, command('', tmp_path / 'work')[:1] + with_teacher(arguments, tmp_path), *words)


def with_teacher(arguments: list[str], tmp_path: Path) -> list[str]:
    names = command('', '')[-2:]
    given = ['--teacher', TEACHER, '--teacher-random', '--work-dir', str(tmp_path), *arguments]
    return given if '--cfg-options' in arguments else [*given, '--cfg-options', *SHORT, *names]


def test_an_option_without_an_equals_sign(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main([STUDENT, '--term-options', 'kd.weight', '2'])
    assert (
        'takes KEY=VALUE without white space around "=", not \'kd.weight\''
        in capsys.readouterr()[1]
    )


@pytest.mark.parametrize(
    'text, words',
    [
        ('optim_wrapper = dict()\n', ['no model', 'optim_wrapper', 'model = dict(']),
        ('model = dict(\n', ['SyntaxError']),
        ("model = dict(type='Nothing')\n", ['Nothing is not in the', '--debug']),
    ],
)
def test_a_config_that_trains_nothing(text, words, tool, tmp_path):
    (tmp_path / 'own.py').write_text(text)
    argv = [str(tmp_path / 'own.py'), '--work-dir', str(tmp_path)]
    refused(tool, argv, *words)


def test_missing_data(tool, tmp_path):
    """The student's data set is looked for when the run is built."""
    # A name of its own: MMEngine keeps the scope of a run by config name and second.
    own = tmp_path / 'no_data.py'
    own.write_text(
        f'_base_ = {STUDENT!r}\n'
        "train_dataloader = dict(dataset=dict(_delete_=True, type='CachedImageFolder',\n"
        f"    data_root={str(tmp_path / 'gone')!r}, split='train'))\n"
    )
    refused(tool, [str(own), '--work-dir', str(tmp_path)], 'gone')


def last_line(folder: Path) -> dict:
    lines = sorted(folder.glob('*/vis_data/scalars.json'))[-1].read_text().splitlines()
    return [json.loads(line) for line in lines if '"loss"' in line][-1]


def test_options_for_teacher_and_terms_train_and_are_in_the_saved_config(tool, shallow, tmp_path):
    """A file of depth 8, classes in another order, half the weight: and once more, as saved."""
    order = ','.join(str(i) for i in reversed(range(10)))
    first, again = tmp_path / 'first', tmp_path / 'again'
    options = ['--teacher-cfg-options', 'model.backbone.depth=8', '--class-map', order]
    options += ['--term-options', 'kd.weight=0.5', 'kd.loss.temperature=3']
    tool.main(command(shallow, first, *options))
    saved = Config.fromfile(first / Path(STUDENT).name)
    (hook,) = [h for h in saved.custom_hooks if h.type == 'mmkd_plugin.DistillHook']
    (term,) = hook.terms  # the recipe's, with what the options say
    assert (term.name, term.weight, term.loss.temperature) == ('kd', 0.5, 3)
    assert not {'recipe', 'weights', 'term_options'} & set(hook)
    assert hook.teacher.cfg_options.model.backbone.depth == 8
    assert hook.teacher.class_map == list(reversed(range(10)))
    log = last_line(first)
    names = ['visualizer.name=again', 'experiment_name=again']
    config = str(first / Path(STUDENT).name)
    tool.main([config, '--work-dir', str(again), '--cfg-options', *names])
    assert last_line(again)['loss_kd'] == pytest.approx(log['loss_kd'], rel=1e-6)
    tool.main(command(shallow, tmp_path / 'plain', *options[:4]))
    assert last_line(tmp_path / 'plain')['loss_kd'] != pytest.approx(log['loss_kd'], rel=1e-2)


def test_the_command_line_says_weights_last(tool):
    """The recipe's name, then --weights, then --weight; and all of them after the config."""

    def wishes(*options, **own):
        args = tool.parse_args([STUDENT, *options])
        hook = dict(type='DistillHook', teacher=dict(config=TEACHER), recipe='gdd:20+kd', **own)
        cfg = Config(dict(model=dict(), custom_hooks=[hook]))
        tool.add_distillation(cfg, args)
        return cfg.custom_hooks[0].get('weights')

    assert wishes() is None
    assert wishes('--weights', 'auto', weights=dict(gdd=2)) == 'auto'
    assert wishes('--weight', 'kd=auto', weights=dict(gdd=2)) == dict(gdd=2, kd='auto')
    flags = ['--weight', 'gdd=3', '--weights', 'published', '--weight', 'kd=ratio:0.3']
    assert wishes(*flags) == {'*': 'published', 'gdd': 3, 'kd': dict(ratio=0.3)}
    own = dict(term_options=dict(gdd=dict(weight=5, begin=2)))
    assert wishes('--weight', 'gdd=3', **own) == dict(gdd=3)
    assert wishes('--term-options', 'gdd.weight=4', weights=dict(gdd=2)) == dict(gdd=4)


def test_options_change_the_hook_of_a_config(tool):
    pair = DIGITS / 'resnet14_resnet8-narrow_digits.py'
    options = ['--class-map', 'names', '--term-options', 'kd.weight=0.5']
    args = tool.parse_args([str(pair), *options, '--teacher-cfg-options', 'model.backbone.depth=8'])
    cfg = Config.fromfile(pair)
    tool.add_distillation(cfg, args)
    (hook,) = cfg.custom_hooks
    assert hook.teacher.class_map == 'names'
    assert hook.teacher.cfg_options == dict(model=dict(backbone=dict(depth=8)))
    assert hook.weights == dict(kd=0.5)
