"""The command `mmkd`: its overview, its parts, and the list of recipes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmkd_plugin import recipes
from mmkd_plugin.checks import nearest
from mmkd_plugin.cli import command
from mmkd_plugin.cli import recipes as listing
from mmkd_plugin.recipes.table import rows

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('words', [[], ['--help'], ['-h'], ['help']])
def test_the_overview_names_every_command(words, capsys):
    assert command.main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith('usage: mmkd COMMAND') and len(told.splitlines()) < 24
    for name, (_, summary) in command.COMMANDS.items():
        assert re.search(rf'^  {name} +{re.escape(summary)}$', told, re.M)


def test_the_overview_and_slips_need_no_torch(tmp_path):
    """Nor the package itself: its import takes seconds, and fails in a broken environment."""
    (tmp_path / 'torch.py').write_text("raise SystemExit('torch was imported')\n")
    script = (
        f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(REPO)!r}]; import mmkd\n'
        'for words in ([], ["trian"], ["inspct"], ["x"]):\n'
        '    sys.argv[1:] = words; print(mmkd.main())\n'
        'assert not {"torch", "mmengine", "mmkd_plugin"} & set(sys.modules)\n'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith('usage: mmkd') and done.stdout.split()[-4:] == ['0', *'222']
    assert done.stderr.splitlines() == [
        "error: mmkd has no command 'trian'; the nearest is 'train'.",
        "error: mmkd has no command 'inspct'; the nearest is 'inspect'.",
        f"error: mmkd has no command 'x'; there are {', '.join(command.COMMANDS)}.",
    ]


@pytest.mark.parametrize('name', command.COMMANDS)
def test_the_help_of_a_command_says_how_it_was_called(name, capsys):
    for words in ([name, '--help'], ['help', name]):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert told.startswith(f'usage: mmkd {name} ') and 'tools/' not in told
    if name == 'recipes':
        return
    with pytest.raises(SystemExit):  # the same as a script of a checkout
        command.load(command.COMMANDS[name][0])(['--help'])
    told = capsys.readouterr().out
    assert 'python tools/' in told and 'mmkd train' not in told


def test_an_environment_without_the_stack_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmkd_plugin', None)
    with pytest.raises(SystemExit, match='^error: .*mmkd_plugin'):
        command.main(['train'])


def test_version(capsys):
    assert command.main(['--version']) == 0
    assert re.fullmatch(r'mmkd_plugin [\d.]+\n', capsys.readouterr().out)


# -- recipes -------------------------------------------------------------------------------------


def test_every_recipe_is_listed_with_weights_and_sources(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '1000')
    command.main(['recipes'])
    told = capsys.readouterr().out
    for name in recipes.names():
        (line,) = (line for line in told.splitlines() if re.match(rf'{name}(:|  )', line))
        assert recipes.describe(name) in line
        for row in rows(name):
            assert all(part in told for part in (*row.models, row.weight, row.source))


def test_the_numbers_are_those_of_the_recipes():
    found = {row.models: row for row in rows('gdd')}
    assert found['two-stage',][1:] == ('auto', '4', 'official code, Faster R-CNN')
    (query,) = (row for row in rows('kd') if 'queries' in row.models)
    assert (query.weight, query.published) == ('auto', '2')
    (bins,) = rows('kd-bins')
    assert bins.published == '0.0625 / columns' and bins.source == 'LD'
    assert [row.models for row in rows('funmatch')] == [('classifier',)]


def test_some_recipes(capsys):
    listing.main(['pkd', 'kd-masks'])
    told = capsys.readouterr().out
    assert 'pkd' in told and 'kd-masks' in told and 'mgd' not in told
    with pytest.raises(SystemExit, match=re.escape(nearest('gddd', recipes.names()))):
        listing.main(['gddd'])


def test_the_help_of_train_names_every_recipe(capsys):
    with pytest.raises(SystemExit):
        command.main(['train', '--help'])
    told = ' '.join(capsys.readouterr().out.split())
    names = re.search(r'--recipe NAME (.*?)\. Several are joined', told)[1]
    listed = re.sub(r' \([^)]*\)', '', names)
    listed = [n.strip() for part in listed.split(';') for n in part.split(':')[1].split(',')]
    assert sorted(listed) == sorted(recipes.names())
    assert 'gdd (default)' in names and 'kd (default of classifiers)' in names
