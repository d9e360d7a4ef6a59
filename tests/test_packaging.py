"""Installing: what setup.py asks for, what a wheel holds, and the set-up of the environments."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
INDEX = 'model-index.yml'
STACK = {'mmengine', 'mmcv', 'mmdet'}
FORK = {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'}


def names(requirements) -> set[str]:
    """Distribution names of a list of requirements."""
    return {re.match(r'[\w.-]+', r)[0] for r in requirements}


@pytest.fixture(scope='module')
def arguments():
    """What setup.py hands to setuptools."""
    setuptools = pytest.importorskip('setuptools')
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, 'setup', lambda **kwargs: seen.update(kwargs))
        runpy.run_path(str(ROOT / 'setup.py'))
    return seen


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of what a build reads, so that builds leave nothing in the repository."""
    pytest.importorskip('pip')
    pytest.importorskip('setuptools')
    copy = tmp_path_factory.mktemp('checkout')
    ignore = shutil.ignore_patterns('__pycache__')
    for folder in ('mmkd_plugin', 'configs', 'tools'):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in (
        'setup.py',
        'mmkd.py',
        'pyproject.toml',
        'LICENSE',
        'MANIFEST.in',
        'README.md',
        INDEX,
    ):
        shutil.copy(ROOT / file, copy / file)
    return copy


def run(*command, **options):
    """Runs a command and returns it with its output, both streams as one text."""
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, **options
    )


# ---- setup.py ------------------------------------------------------------------------------------


def test_nothing_is_required_hard(arguments):
    assert arguments['install_requires'] == []


def test_the_two_stacks_are_extras_and_never_mixed(arguments):
    extras = arguments['extras_require']
    assert {'onedl', 'openmmlab', 'demo', 'dev'} <= set(extras)
    assert FORK <= names(extras['onedl']) and not STACK & names(extras['onedl'])
    assert STACK <= names(extras['openmmlab']) and not FORK & names(extras['openmmlab'])
    for extra in ('demo', 'dev'):
        assert not (STACK | FORK) & names(extras[extra])


def test_install_into_this_environment_would_change_no_other_package(checkout):
    done = run(
        sys.executable, '-m', 'pip', 'install', '--dry-run', '--no-index', '--no-build-isolation',
        '--disable-pip-version-check', '-e', str(checkout),
    )  # fmt: skip
    if 'no such option: --dry-run' in done.stdout:
        pytest.skip('this pip is older than 22.2 and has no --dry-run')
    assert done.returncode == 0, done.stdout
    would = re.search(r'^Would install (.*)$', done.stdout, re.MULTILINE)
    assert would, done.stdout
    assert re.fullmatch(r'mmkd[-_]plugin-[\d.]+', would[1].strip())


@pytest.fixture(scope='module', params=['wheel', 'sdist'])
def installed(request, checkout, tmp_path_factory):
    """The package as pip installs it: from a wheel of the checkout, or from a source archive."""
    folder, source = tmp_path_factory.mktemp(request.param), checkout
    if request.param == 'sdist':
        done = run(sys.executable, 'setup.py', '-q', 'sdist', '-d', str(folder), cwd=checkout)
        assert done.returncode == 0, done.stdout
        (source,) = folder.glob('mmkd_plugin-*.tar.gz')
    done = run(
        sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--no-build-isolation',
        '--disable-pip-version-check', '--target', str(folder / 'site'), str(source),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder / 'site'


def test_an_installation_holds_package_configs_and_tools(installed):
    for module in (ROOT / 'mmkd_plugin').rglob('*.py'):
        assert (installed / module.relative_to(ROOT)).is_file()
    inside = installed / 'mmkd_plugin' / '.mim'
    for folder in ('configs', 'tools'):
        for file in (ROOT / folder).rglob('*'):
            if file.is_file() and '__pycache__' not in file.parts:
                assert (inside / file.relative_to(ROOT)).is_file()
    assert (inside / INDEX).is_file() and not (installed / 'tests').exists()
    assert (installed / 'mmkd_plugin' / 'py.typed').is_file()
    (metadata,) = installed.glob('*.dist-info/METADATA')
    requires = re.findall(r'^Requires-Dist: (.*)$', metadata.read_text(), re.M)
    assert requires and all('extra ==' in line for line in requires)


def test_an_installation_finds_its_configs(installed, tmp_path):
    """By name for a teacher, as the base of a user's config, and as `mim train` starts them."""
    (tmp_path / 'own.py').write_text(
        "_base_ = 'mmkd_plugin::classification/digits/resnet8-narrow_digits.py'\n"
        'train_cfg = dict(max_epochs=0)\n'
    )
    tool = installed / 'mmkd_plugin' / '.mim' / 'tools' / 'train.py'
    paths = os.pathsep.join([str(installed), *(p for p in sys.path if p and Path(p) != ROOT)])
    there = dict(cwd=tmp_path, env={**os.environ, 'PYTHONPATH': paths})
    teacher = 'mmkd_plugin::classification/digits/resnet14_digits.py'
    done = run(
        sys.executable, str(tool), 'own.py', '--launcher', 'none', '--teacher', teacher,
        '--teacher-random', '--recipe', 'no-such', **there,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].startswith("error: There is no recipe 'no-such'")
    seen = (
        'from mmkd_plugin import model_config as m; c = m.read_config("own.py");'
        f'print(m.__file__); print(m.find_config({teacher!r})); print(c.model.type)'
    )
    done = run(sys.executable, '-c', seen, **there)
    package, config, kind = done.stdout.splitlines()[-3:]
    assert Path(package).is_relative_to(installed) and Path(config).is_relative_to(installed)
    assert kind == 'ImageClassifier'


def test_the_index_lists_every_config_once():
    """In OpenMMLab's form: one metafile for each folder of configs, collections defined once."""
    index = yaml.safe_load((ROOT / INDEX).read_text())
    folders = {f.parent for f in (ROOT / 'configs').rglob('*.py') if '_base_' not in f.parts}
    assert sorted(index['Import']) == sorted(
        f'{folder.relative_to(ROOT).as_posix()}/metafile.yml' for folder in folders
    )
    files = {name: yaml.safe_load((ROOT / name).read_text()) for name in index['Import']}
    collections = [c['Name'] for file in files.values() for c in file.get('Collections', [])]
    models = [(name, model) for name, file in files.items() for model in file['Models']]
    assert len(collections) == len(set(collections))
    assert len({model['Name'] for _, model in models}) == len(models)
    for name, model in models:
        config = ROOT / model['Config']
        assert config.is_file() and config.parent == (ROOT / name).parent, model
        assert config.stem == model['Name'] and model['In Collection'] in collections
        assert model['Metadata']['Training Data']
    listed = [model['Config'] for _, model in models]
    there = [f for folder in folders for f in folder.glob('*.py')]
    assert sorted(listed) == sorted(f.relative_to(ROOT).as_posix() for f in there)


def test_version_is_the_packages(arguments):
    from mmkd_plugin import __version__

    assert arguments['version'] == __version__


# ---- constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize('lane, stack', [('onedl', FORK), ('openmmlab', STACK)])
def test_constraints_are_exact_and_hold_one_stack(lane, stack):
    lines = (ROOT / 'constraints' / f'{lane}.txt').read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith('#')]
    for line in pins:
        assert re.fullmatch(r'[\w.-]+==[\w.+]+( ; python_version .+)?', line), line
    assert stack | {'torch', 'torchvision', 'numpy', 'setuptools'} <= names(pins)
    assert not ((FORK | STACK) - stack) & names(pins)


# ---- set-up script -------------------------------------------------------------------------------

# An interpreter for the set-up to drive: it answers questions about itself as the real one does,
# is asked for packages and ops as the test says, and writes down what pip is told.
STUB = """#!/bin/sh
case "$*" in
    *"-m pip"*) echo "$MMCV_WITH_OPS $*" >>"{calls}"; [ ! -e "{folder}/pip-fails" ] ;;
    "- constraints/"*) cat >/dev/null; [ -e "{folder}/installed" ] ;;
    *mmcv.ops*) [ -e "{folder}/ops" ] || {{ echo "no ops here"; exit 1; }} ;;
    *sysconfig*|*cpu_count*) exec "{python}" "$@" ;;
esac
"""


@pytest.fixture
def stub_env(tmp_path):
    """A folder like a virtual environment whose python is the stub; flags are files in it."""
    if not (shutil.which('bash') and shutil.which('g++')):
        pytest.skip('the set-up needs bash and g++')
    venv = tmp_path / 'venv'
    (venv / 'bin').mkdir(parents=True)
    stub = venv / 'bin' / 'python'
    stub.write_text(STUB.format(calls=venv / 'calls', folder=venv, python=sys.executable))
    stub.chmod(0o755)
    (venv / 'calls').touch()
    return venv


def set_up(venv, lane='onedl', **env):
    return run(
        'bash', str(ROOT / 'tools' / 'setup_env.sh'), lane, str(venv), env={**os.environ, **env}
    )


def test_set_up_of_a_complete_environment_installs_only_the_checkout(stub_env):
    (stub_env / 'installed').touch()
    (stub_env / 'ops').touch()
    done = set_up(stub_env)
    assert done.returncode == 0, done.stdout
    (call,) = (stub_env / 'calls').read_text().splitlines()
    assert call.endswith('--no-deps -e .')
    assert (stub_env / '.ready').exists()


def test_set_up_completes_a_half_finished_environment(stub_env):
    (stub_env / 'ops').touch()  # appears with the installation
    done = set_up(stub_env)
    assert done.returncode == 0, done.stdout
    calls = (stub_env / 'calls').read_text().splitlines()
    torch, stack, extras, optional, checkout = calls
    assert 'constraints/onedl.txt torch torchvision' in torch
    assert stack.startswith('1 ') and '--no-build-isolation' in stack and 'onedl-mmcv' in stack
    assert 'pytest' in extras and checkout.endswith('-e .')
    assert 'timm' in optional and 'onedl-mmpretrain' in optional
    assert 'minutes' in done.stdout  # says beforehand that it takes long


def test_set_up_rebuilds_ops_once_and_explains_when_they_still_fail(stub_env):
    (stub_env / 'installed').touch()
    done = set_up(stub_env)
    assert done.returncode == 1
    (rebuild,) = (stub_env / 'calls').read_text().splitlines()
    assert '--force-reinstall' in rebuild and '--no-binary onedl-mmcv onedl-mmcv' in rebuild
    assert 'no ops here' in done.stdout and f'rm -rf {stub_env}' in done.stdout
    assert not (stub_env / '.ready').exists()  # the next call goes on


def test_set_up_that_fails_leaves_no_stamp(stub_env):
    (stub_env / 'pip-fails').touch()
    done = set_up(stub_env)
    assert done.returncode == 1
    assert 'Installing torch failed' in done.stdout
    assert not (stub_env / '.ready').exists()


def test_set_up_names_the_python_it_needs(tmp_path):
    bin_ = tmp_path / 'bin'
    bin_.mkdir()
    (bin_ / 'dirname').symlink_to(shutil.which('dirname'))
    done = run(
        shutil.which('bash'), str(ROOT / 'tools' / 'setup_env.sh'), 'openmmlab',
        str(tmp_path / 'venv'), env={'PATH': str(bin_)},
    )  # fmt: skip
    assert done.returncode == 1
    assert 'needs Python 3.10 to 3.11' in done.stdout and 'make PYTHON=' in done.stdout
    assert not (tmp_path / 'venv').exists()


# ---- Makefile ------------------------------------------------------------------------------------


def dry_make(*arguments) -> str:
    """The commands that make would run."""
    if not shutil.which('make'):
        pytest.skip('make is not installed')
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MAKE', 'MFLAGS'))}
    done = run('make', '--no-print-directory', '-n', *arguments, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    'arguments, command',
    [
        (['demo', 'SEEDS=3', 'ARGS=--fresh'], 'tools/demo.py --seeds 3 --fresh'),
        (['test'], 'pytest -m "not slow and not gpu" -n 2'),
        (['test-slow'], 'pytest -m slow'),
        (['test-gpu'], 'pytest -m gpu'),
        (['test-openmmlab'], '.venv-openmmlab/bin/python -m pytest -m "not slow and not gpu"'),
        (['lint'], 'ruff check .'),
        (['types'], 'python -m mypy'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_make_targets_run_what_their_names_say(arguments, command):
    assert command in dry_make(*arguments)


@pytest.mark.parametrize('target', ['demo', 'test', 'test-openmmlab'])
def test_make_sets_up_first_where_nothing_is_ready(target, tmp_path):
    lane = 'openmmlab' if 'openmmlab' in target else 'onedl'
    venv = tmp_path / lane
    first, second = dry_make(
        target, f'VENV={tmp_path}/onedl', f'VENV_OFFICIAL={tmp_path}/openmmlab'
    ).splitlines()
    assert first == f'bash tools/setup_env.sh {lane} {venv}'
    assert f'{venv}/bin/python' in second
