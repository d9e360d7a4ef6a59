"""What differs between environments: the stack check at import, and differences between versions.

mmengine, mmcv and mmdet exist twice on PyPI, as the official packages and as a maintained fork
(``onedl-*``), under the same import names. pip knows nothing of that: it installs both, the second
overwrites files of the first, and what runs then is a mixture. :func:`check_stack` finds such
environments, and incomplete ones, and says what to type.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from importlib import metadata

__all__ = ['StackError', 'check_package', 'check_stack', 'guard_modules']

import_module = (
    importlib.import_module
)  # the tests put environments of their own in place of these two
find_spec = importlib.util.find_spec

# import name -> every distribution that provides it; the first one is what we propose
PROVIDERS = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmrotate': ('onedl-mmrotate', 'mmrotate-dev', 'mmrotate'),
    'mmpose': ('mmpose',),
    'mmyolo': ('mmyolo',),
    'mmdet3d': ('mmdet3d',),
}
PIP = 'python -m pip'


def guard_modules() -> None:
    """Makes ``torch.compile`` compile anew when an attribute of a module has changed.

    Old torch (seen: 2.1) takes modules for constant: a term that begins later than training would
    never act in a compiled step.
    """
    version = importlib.import_module('torch').__version__
    if tuple(int(part) for part in version.split('.')[:2]) >= (2, 5):
        return  # always guarded there, and importing dynamo takes a second
    config = importlib.import_module('torch._dynamo').config
    config.guard_nn_modules = True


class StackError(ImportError):
    """The environment lacks a package, has it twice, or has it without its compiled part."""


def check_stack(need: Sequence[str] = ('mmengine',)) -> None:
    """Checks that the OpenMMLab packages can be used, before anything of them is imported.

    Args:
        need: import names that the caller is about to use. ``'mmcv'`` stands for mmcv with its
            compiled ops and imports them; without it the check only looks at metadata.

    Raises:
        StackError: one sentence with the command that mends the environment.

    Example:
        >>> check_stack(need=('mmengine',))
    """
    installed = {name: _providers(name) for name in PROVIDERS}
    for name, found in installed.items():
        if len(found) > 1:
            raise StackError(_doubled(name, installed))
    if find_spec('torch') is None:
        raise StackError(
            f'mmkd_plugin needs PyTorch, which is not installed: `{PIP} install torch torchvision`.'
        )
    for name in need:
        if find_spec(name) is None:
            raise StackError(
                f'mmkd_plugin needs {name} here, which is not installed: '
                f'`{_install(_preferred(name, installed))}`.'
            )
    if find_spec('cv2') is None:
        raise StackError(
            'mmengine imports OpenCV (cv2) without declaring it, and it is not installed: '
            f'`{PIP} install opencv-python-headless`.'
        )
    if 'mmcv' in need:
        _check_ops(installed)


def check_package(name: str) -> None:
    """Imports an OpenMMLab package, which looks at the versions beside it when it is imported.

    Args:
        name: of the package, such as a config's default scope; any other name passes.

    Raises:
        StackError: the package refuses a version, or lacks another package; with its own words.
    """
    if name not in PROVIDERS or find_spec(name) is None:
        return  # what is looked for in it will not be found, and that says so
    told = ' '.join(map(' '.join, _providers(name).items())) or name
    try:
        import_module(name)
    except AssertionError as error:
        reason = ' '.join(str(error).split()) or 'no reason'
        raise StackError(
            f'{told} does not go with the packages of this environment. It says: {reason} '
            'Which versions fit each other is in docs/your-project.md.'
        ) from error
    except ModuleNotFoundError as error:
        if error.name is None or '.' in error.name:  # a part of a package, such as compiled ops
            raise
        raise StackError(
            f'{told} needs {error.name}, which is not installed: `{PIP} install {error.name}`.'
        ) from error


def _providers(name: str) -> dict[str, str]:
    """Installed distributions that provide an import name, with their versions."""
    found = {}
    for distribution in PROVIDERS[name]:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def _preferred(name: str, installed: dict[str, dict[str, str]]) -> str:
    """The distribution of ``name`` that fits the rest of the stack, the fork if nothing decides."""
    single = [d for found in installed.values() if len(found) == 1 for d in found]
    official = single and not any(d.startswith('onedl-') for d in single)
    fitting = [d for d in PROVIDERS[name] if not (official and d.startswith('onedl-'))]
    return fitting[0]


def _install(distribution: str, version: str | None = None) -> str:
    """The command that installs a distribution, for mmcv with its ops compiled."""
    wanted = f'{distribution}=={version}' if version else distribution
    if distribution == 'mmcv' and not version:
        wanted = "'mmcv<2.2'"  # the newest that mmdet accepts
    if not distribution.endswith('mmcv'):
        return f'{PIP} install {wanted}'
    return (
        f'MMCV_WITH_OPS=1 {PIP} install --no-build-isolation --no-cache-dir '
        f'--no-binary {distribution} {wanted}'
    )


def _doubled(name: str, installed: dict[str, dict[str, str]]) -> str:
    """The sentence about a package that is installed from two distributions."""
    found = installed[name]
    keep = _preferred(name, installed)
    both = ' and '.join(f'{d} {v}' for d, v in found.items())
    return (
        f'{both} are both installed and overwrite each other, for both are imported as `{name}`; '
        f'remove them and install one: '
        f'`{PIP} uninstall -y {" ".join(found)} && {_install(keep, found.get(keep))}`.'
    )


def _check_ops(installed: dict[str, dict[str, str]]) -> None:
    """Imports mmcv's compiled ops and explains why that failed."""
    try:
        import_module('mmcv.ops')
    except ImportError as error:
        reason = str(error).splitlines()[0]
        if 'libGL' in reason or 'cv2' in reason:
            raise StackError(
                f'OpenCV does not load ({reason}); its build for machines without a display does: '
                f'`{PIP} install --force-reinstall --no-deps opencv-python-headless`.'
            ) from error
        found: dict[str, str | None] = {**installed['mmcv']}
        found = found or {_preferred('mmcv', installed): None}
        name, version = next(iter(found.items()))
        # mmcv-lite never has ops: its place is taken by the full package of the same version
        full = 'onedl-mmcv' if name.startswith('onedl-') else 'mmcv'
        raise StackError(
            f'{name} {version or ""} is installed without compiled ops that fit this torch '
            f'({reason}); compile them, which takes 10-30 minutes: '
            f'`{PIP} uninstall -y {name} && {_install(full, version)}`.'
        ) from error
