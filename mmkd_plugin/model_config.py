"""Configs of models: where their files are, and what is read of them.

The hook, the tools and the benchmarks find a config by the same rules.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from torch import nn

from .checks import nearest, shortened
from .registry import SCOPE

_HERE, _MMENGINE = Path(__file__), Path(mmengine.__file__).parent
CONFIG_SUFFIXES = ('.py', '.json', '.yml', '.yaml')


def let_bases_be_found() -> None:
    """Tells MMEngine where ``_base_ = 'package::...'`` lies, of packages that it does not know.

    It has a table of the distributions of OpenMMLab. This package is none of them, and OneDL's
    MMSegmentation is distributed under another name; MMEngine finds that by its import name. So it
    finds this package by a module of it: the distribution of an editable checkout lies elsewhere.
    """
    MODULE2PACKAGE.setdefault(SCOPE, __name__)
    try:
        metadata.distribution(MODULE2PACKAGE['mmseg'])
    except metadata.PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


let_bases_be_found()


# What a model is built from; nothing else of its config is read.
_READ = ('model', 'data_preprocessor', 'default_scope')


def load_model_config(
    config: str | Path | dict | Config, cfg_options: dict | None = None, role: str = 'model'
) -> Config:
    """Reads a config given as path, ``'pkg::path'``, dict or Config.

    Args:
        config: the config, or the dict of the model alone.
        cfg_options: changes to it, such as ``{'model.backbone.depth': 50}``, also nested.
        role: whose config it is, for messages.

    Returns:
        A Config of its own with a ``model`` entry (and ``default_scope`` where one is known).

    Raises:
        FileNotFoundError: no such file; lists the configs of the folder that are most alike.
        ValueError: no model in it, or options that do not fit.
    """
    if isinstance(config, (str, Path)):
        config = read_config(str(config), f"{role}'s config")
    elif isinstance(config, Config):
        config = copy.deepcopy(config)
    elif isinstance(config, dict):
        config = Config(copy.deepcopy(dict(config)))
    else:
        raise TypeError(
            "A model's config is a path, 'pkg::path', dict or Config, "
            f'not {type(config).__name__} ({config!r}).'
        )
    if 'model' not in config and 'type' in config:
        config = Config(dict(model=config.to_dict()))
    if 'model' not in config:
        raise ValueError("The config has no 'model'; give a full config or the model's dict.")
    if not isinstance(config.model, (dict, nn.Module)):
        raise ValueError(f"The config's model={config.model!r} must be a dict with a 'type'.")
    if cfg_options is not None:
        _change(config, cfg_options, f'{role}.cfg_options')
    return config


def _change(config: Config, options: dict, where: str) -> None:
    if not isinstance(options, dict):
        raise ValueError(
            f'{where}={options!r} must be a dict of changes, such as '
            "{'model.backbone.depth': 50}."
        )
    for key in options:
        if str(key).split('.')[0] not in _READ:
            raise ValueError(
                f'{where} changes {shortened(key)!r}, which nobody reads of the config of a model; '
                f"its keys begin with 'model.', 'data_preprocessor.' or 'default_scope'; "
                f'{nearest(str(key), _READ)}.'
            )
    try:
        config.merge_from_dict(options)
    except (AssertionError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f'{where}={options!r} does not fit the config: {error}') from error


def read_config(name: str, what: str = 'config') -> Config:
    """Reads the config of a path or ``'package::path'``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no config, with the line at which it fails.
    """
    path = find_config(name, what)
    try:
        return _in_default_scope(Config.fromfile(path))
    except Exception as error:
        raise ValueError(
            f'{what} {shortened(name)}: {type(error).__name__}{_line_in(path, error)}: {error}'
        ) from error


def _in_default_scope(config: Config) -> Config:
    """Of a ``_base_`` in this package: its components are those of its own ``default_scope``.

    MMEngine looks for the components of a base in the package that the base lies in; here, that
    would be GFL or CocoDataset in mmkd_plugin.
    """

    def strip(value: Any) -> None:
        if isinstance(value, ConfigDict):
            if value.get('_scope_') == SCOPE:
                del value['_scope_']
            for key in value:
                strip(dict.__getitem__(value, key))
        elif isinstance(value, (list, tuple)):
            for item in value:
                strip(item)

    strip(config._cfg_dict)
    return config


def _line_in(path: Path, error: Exception) -> str:
    """Which line of a config failed, or of one that it is based on, if one did."""
    trace, place = error.__traceback__, ''
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename  # some versions of MMEngine run a config as ''
        file = Path(name).resolve()
        of_config = not name or (file.suffix == '.py' and file != _HERE)
        if of_config and not file.is_relative_to(_MMENGINE):
            other = f' of {name}' if name and file != path.resolve() else ''
            place = f' in line {trace.tb_lineno}{other}'
        trace = trace.tb_next
    return place


def find_config(name: str, what: str = 'config') -> Path:
    """The file of a config given as a path (``~`` is the home folder) or as ``'package::path'``.

    An installed package carries its configs in ``.mim/configs``; a checkout has them beside the
    package, with or without a link in that place. ``what`` says whose it is, for messages.

    Raises:
        FileNotFoundError: if there is no such file; the nearest names are listed.
    """
    package, _, inside = name.rpartition('::')
    if not package:
        return existing_file(name, what, CONFIG_SUFFIXES, _HOW_TO_NAME)
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f'{what} {shortened(name)!r}: the package {shortened(package)!r} is not installed in '
            'this environment.'
        )
    root = Path(spec.submodule_search_locations[0])
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if folder.is_dir():
            root = folder.resolve() if folder.is_symlink() else folder
            return existing_file(inside, what, CONFIG_SUFFIXES, root=root)
    raise FileNotFoundError(
        f'{what} {name!r}: {package} is installed without its configs ({root / ".mim"} does not '
        'exist). Install it with them, or give the path of the file.'
    )


_HOW_TO_NAME = "Configs of an installed package are written 'mmdet::folder/name.py'."


def existing_file(
    name: str | Path,
    what: str,
    suffixes: Sequence[str] = (),
    advice: str = '',
    root: Path = Path(),
) -> Path:
    """Checks that a file is there.

    Args:
        name: the path; ``~`` is the home folder.
        what: what it is, for the message.
        suffixes: of the files that may be meant; all if empty.
        advice: a sentence that ends the message.
        root: folder in which the path begins.

    Raises:
        FileNotFoundError: if it is not; lists the files of the folder with the nearest names.
    """
    advice = advice and f' {advice}'
    if not str(name).strip():
        raise FileNotFoundError(f'{what}: the name is empty ({str(name)!r}); give a file.{advice}')
    path = root / Path(name).expanduser()
    if _is(path, 'file'):
        return path
    if _is(path, 'dir'):
        raise FileNotFoundError(f'{what}: {path} is a folder, not a file.{advice}')
    folder = path.parent
    while not _is(folder, 'dir'):
        folder = folder.parent
    files = {
        entry.name: entry
        for entry in sorted(folder.iterdir())
        if not suffixes or entry.suffix in suffixes or entry.is_dir()
    }
    wanted = path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, files, n=5, cutoff=0.5)
    place = 'this folder' if folder == Path('.') else folder
    own = root if folder.is_relative_to(root) else folder
    names = ', '.join(repr(files[name].relative_to(own).as_posix()) for name in near)
    hint = f'nearest in {place}: {names}' if near else f'{place} has no similar name'
    raise FileNotFoundError(f'{what}: there is no file {shortened(path)}; {hint}.{advice}')


def _is(path: Path, kind: str) -> bool:
    """``is_file`` and ``is_dir``, of a name too long for the file system, too."""
    try:
        return getattr(path, f'is_{kind}')()
    except OSError:
        return False
