"""The package as a user installs it, in an environment of its own that sees this one's stack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHORT = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.num_samples=60']
TEACHER = 'mmkd_plugin::classification/digits/resnet14_digits.py'
STUDENT = 'mmkd_plugin::classification/digits/resnet8-narrow_digits.py'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Place:
    """A folder without a checkout, and an environment with `mmkd` in it."""

    def __init__(self, folder: Path, environment: Path) -> None:
        self.folder, self.bin = folder, environment / 'bin'

    def run(self, *command: object, status: int = 0) -> str:
        """What a command prints, both streams; its first word is looked up in the environment."""
        env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'LOCAL_RANK')}
        first, *others = map(str, command)
        done = subprocess.run(
            [str(self.bin / first), *others],
            cwd=self.folder,
            env=dict(env, OMP_NUM_THREADS='1', COLUMNS='200'),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert done.returncode == status, done.stdout[-4000:]
        return done.stdout


def install(kind: str, folder: Path) -> Place:
    """Installs a copy of the checkout, as a wheel or to be edited, and nothing else."""
    pytest.importorskip('pip')
    copy, environment, work = folder / 'checkout', folder / 'environment', folder / 'work'
    copy.mkdir()
    for name in ('mmkd_plugin', 'configs', 'tools'):
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, copy / name, ignore=ignore, symlinks=True)
    files = ('LICENSE', 'MANIFEST.in', 'README.md', 'mmkd.py', 'model-index.yml')
    for name in (*files, 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, copy / name)
    venv.create(environment, with_pip=False)
    # Plain paths: the .pth files in them, of this checkout's own installation, stay unread.
    (site,) = (environment / 'lib').glob('python*/site-packages')
    stack = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
    (site / 'stack.pth').write_text('\n'.join(stack))
    place = Place(work, environment)
    work.mkdir()
    how = ['--editable'] if kind == 'editable' else []
    place.run(
        'python', '-m', 'pip', 'install', '--no-deps', '--no-index', '--no-build-isolation',
        '--ignore-installed', '--disable-pip-version-check', *how, copy,
    )  # fmt: skip
    if kind == 'wheel':
        shutil.rmtree(copy)
    return place


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def place(request, tmp_path_factory) -> Place:
    return install(request.param, tmp_path_factory.mktemp(request.param))


def test_our_configs_train_and_distil_by_name(place):
    """As the student, as the teacher, and as the base of a user's config."""
    assert 'usage: mmkd COMMAND' in place.run('mmkd')
    assert "the nearest is 'train'" in place.run('mmkd', 'trian', status=2)
    place.run('mmkd', 'train', TEACHER, '--work-dir', 'teacher', '--cfg-options', *SHORT)
    (place.folder / 'own.py').write_text(f'_base_ = {STUDENT!r}\nrandomness = dict(seed=1)\n')
    teacher = ['--teacher', TEACHER, '--teacher-checkpoint', 'teacher/epoch_1.pth']
    options = ['--work-dir', 'own', '--cfg-options', *SHORT]
    told = place.run('python', '-m', 'mmkd_plugin', 'train', 'own.py', *teacher, *options)
    assert 'loss_kd' in told
    told = place.run('mmkd', 'test', STUDENT, 'own/epoch_1.pth', '--work-dir', 'tested')
    assert 'accuracy/top1' in told
    assert 'funmatch' in place.run('mmkd', 'recipes')
    told = place.run('mmkd', 'inspect', STUDENT, '--teacher', TEACHER)
    assert 'Recipes for this pair' in told


def test_several_processes_by_the_name_of_the_package(place):
    launch = ['python', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    options = ['--launcher', 'pytorch', '--work-dir', 'two', '--cfg-options', *SHORT]
    place.run(*launch, '-m', 'mmkd_plugin', 'train', STUDENT, *options)
    assert (place.folder / 'two' / 'epoch_1.pth').is_file()


def test_the_demo_runs_where_it_is_called(tmp_path_factory):
    place = install('wheel', tmp_path_factory.mktemp('demo'))
    tiny = ['--epochs', 1, '--train-images', 32, '--val-images', 8, '--pictures', 1]
    options = [f'{split}_dataloader.num_workers=0' for split in ('train', 'val')]
    options += [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val')]
    options += ['default_hooks.logger.interval=1']
    told = place.run('mmkd', 'demo', *tiny, '--cfg-options', *options)
    assert 'Report: work_dirs/demo/report.html' in told
    page = (place.folder / 'work_dirs/demo/report.html').read_text(encoding='utf-8')
    assert 'mmkd demo --epochs 1' in page
    assert 'python -m mmkd_plugin train mmkd_plugin::demo/gfl_r18_digits.py' in page
