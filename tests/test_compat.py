"""The stack check, in environments made up by replacing what it looks at."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mmkd_plugin import compat

ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}
OFFICIAL = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}


@pytest.fixture
def environment(monkeypatch):
    """Returns a function that installs a made-up environment for the check to look at."""

    def install(distributions, modules=None, ops_error=None):
        def version(name):
            if name not in distributions:
                raise compat.metadata.PackageNotFoundError(name)
            return distributions[name]

        def import_module(name):
            if ops_error is not None:
                raise ops_error

        if modules is None:
            modules = ('torch', 'cv2', 'mmengine', 'mmcv', 'mmdet')
        monkeypatch.setattr(compat.metadata, 'version', version)
        monkeypatch.setattr(compat, 'find_spec', lambda name: name in modules or None)
        monkeypatch.setattr(compat, 'import_module', import_module)

    return install


def failure(need=('mmengine', 'mmcv', 'mmdet')) -> str:
    """Message of the check; every one is a single sentence that ends with its command."""
    with pytest.raises(compat.StackError) as info:
        compat.check_stack(need)
    message = str(info.value)
    assert '\n' not in message and message.endswith('`.')
    return message


@pytest.mark.parametrize('distributions', [ONEDL, OFFICIAL], ids=['onedl', 'official'])
def test_a_complete_stack_passes(environment, distributions):
    environment(distributions)
    compat.check_stack(('mmengine', 'mmcv', 'mmdet'))


def test_this_environment_passes():
    compat.check_stack(('mmengine', 'mmcv', 'mmdet'))


def run_python(code, **env):
    """Runs code in a new process of this interpreter; returns the last line of its errors."""
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, **env},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_import_stops_at_a_doubled_package(tmp_path):
    here = compat._providers('mmengine')
    other = 'mmengine' if 'onedl-mmengine' in here else 'onedl-mmengine'
    info = tmp_path / f'{other.replace("-", "_")}-0.10.9.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {other}\nVersion: 0.10.9\n')
    paths = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    error = run_python('import mmkd_plugin', PYTHONPATH=paths)
    assert error.startswith('mmkd_plugin.compat.StackError: ')
    assert f'{other} 0.10.9' in error and 'are both installed' in error
    (kept,) = here.items()
    assert error.endswith(f'python -m pip install {kept[0]}=={kept[1]}`.')


def test_real_mmcv_without_its_extension_is_explained():
    error = run_python(
        "import sys; sys.modules['mmcv._ext'] = None\n"
        'from mmkd_plugin.compat import check_stack\n'
        "check_stack(('mmengine', 'mmcv'))"
    )
    assert 'installed without compiled ops' in error and 'MMCV_WITH_OPS=1' in error


def test_classification_needs_mmengine_only(environment):
    environment({'onedl-mmengine': '0.10.12'}, modules=('torch', 'cv2', 'mmengine'))
    compat.check_stack()


def test_ops_are_imported_only_on_request(environment):
    environment(ONEDL, ops_error=AssertionError('mmcv.ops was imported'))
    compat.check_stack(('mmengine', 'mmdet'))


@pytest.mark.parametrize(
    'extra, kept, command',
    [
        (
            {'mmengine': '0.10.7'},
            'mmengine',
            'pip uninstall -y onedl-mmengine mmengine && '
            'python -m pip install onedl-mmengine==0.10.12`.',
        ),
        (
            {'mmcv': '2.1.0'},
            'mmcv',
            'pip uninstall -y onedl-mmcv mmcv && MMCV_WITH_OPS=1 python -m pip install '
            '--no-build-isolation --no-cache-dir --no-binary onedl-mmcv onedl-mmcv==2.3.6`.',
        ),
        (
            {'mmdet': '3.3.0'},
            'mmdet',
            'pip uninstall -y onedl-mmdetection mmdet && '
            'python -m pip install onedl-mmdetection==3.5.1`.',
        ),
    ],
    ids=['mmengine', 'mmcv', 'mmdet'],
)
def test_a_doubled_package_is_found_at_import(environment, extra, kept, command):
    environment({**ONEDL, **extra})
    message = failure(need=('mmengine',))  # what `import mmkd_plugin` asks for
    assert 'are both installed' in message and f'imported as `{kept}`' in message
    assert message.endswith(command)


def test_the_official_package_is_kept_in_an_official_stack(environment):
    environment({**OFFICIAL, 'onedl-mmengine': '0.10.12'})
    assert failure().endswith('python -m pip install mmengine==0.10.7`.')


@pytest.mark.parametrize(
    'missing, distributions, command',
    [
        ('torch', ONEDL, 'python -m pip install torch torchvision'),
        ('cv2', ONEDL, 'python -m pip install opencv-python-headless'),
        ('mmengine', {}, 'python -m pip install onedl-mmengine'),
        ('mmdet', {'mmengine': '0.10.7', 'mmcv': '2.1.0'}, 'python -m pip install mmdet'),
        (
            'mmcv',
            {'mmengine': '0.10.7'},
            'MMCV_WITH_OPS=1 python -m pip install --no-build-isolation --no-cache-dir '
            "--no-binary mmcv 'mmcv<2.2'",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_command(environment, missing, distributions, command):
    modules = {'torch', 'cv2', 'mmengine', 'mmcv', 'mmdet'} - {missing}
    environment(distributions, modules)
    message = failure()
    assert 'not installed' in message
    assert message.endswith(f'`{command}`.')


@pytest.mark.parametrize(
    'distributions, reason, command',
    [
        (
            ONEDL,
            "No module named 'mmcv._ext'",
            'python -m pip uninstall -y onedl-mmcv && MMCV_WITH_OPS=1 python -m pip install '
            '--no-build-isolation --no-cache-dir --no-binary onedl-mmcv onedl-mmcv==2.3.6`.',
        ),
        (
            {**OFFICIAL, 'mmcv': '2.1.0'},
            'undefined symbol: _ZN3c10',
            '--no-binary mmcv mmcv==2.1.0`.',
        ),
        (
            {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0'},
            "No module named 'mmcv._ext'",
            'pip uninstall -y mmcv-lite && MMCV_WITH_OPS=1 python -m pip install '
            '--no-build-isolation --no-cache-dir --no-binary mmcv mmcv==2.1.0`.',
        ),
        (
            ONEDL,
            'libGL.so.1: cannot open shared object file',
            'install --force-reinstall --no-deps opencv-python-headless`.',
        ),
    ],
    ids=['no ops', 'other torch', 'lite', 'opencv'],
)
def test_ops_that_do_not_import_are_explained(environment, distributions, reason, command):
    environment(distributions, ops_error=ImportError(reason))
    message = failure(need=('mmengine', 'mmcv'))
    assert reason in message
    assert message.endswith(command)


def test_stack_error_is_an_import_error():
    assert issubclass(compat.StackError, ImportError)


# -- packages beside the stack -------------------------------------------------------------------

MMYOLO = 'MMCV==2.3.6 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.1.0.'


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (AssertionError(MMYOLO), f'mmyolo 0.6.0 does not go with .* It says: {MMYOLO} Which'),
        (ModuleNotFoundError(name='prettytable'), 'mmyolo 0.6.0 needs prettytable.*install pretty'),
    ],
)
def test_a_package_that_refuses_the_stack_is_quoted(environment, error, words):
    environment({**ONEDL, 'mmyolo': '0.6.0'}, ('torch', 'mmengine', 'mmyolo'), ops_error=error)
    with pytest.raises(compat.StackError, match=words):
        compat.check_package('mmyolo')


def test_unknown_and_missing_packages_pass(environment):
    environment(ONEDL, ops_error=AssertionError('never imported'))
    for name in ('mmyolo', 'my_project', 'mmengine.model'):
        compat.check_package(name)


@pytest.mark.parametrize(('distributions', 'name'), [(ONEDL, 'onedl-'), (OFFICIAL, '')])
def test_a_missing_package_is_that_of_the_stack(environment, distributions, name):
    environment(distributions)
    assert f'install {name}mmsegmentation' in failure(('mmseg',))
