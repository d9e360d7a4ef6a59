"""What train.py, test.py and inspect_model.py share: finding configs and starting processes."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device

CFG_OPTIONS_HELP = (
    'overrides settings of the config, as key=value; a list is written key="[a,b]" or '
    'key=a,b, nested ones key="[(a,b),(c,d)]" (quotes needed, no white space)'
)


class UsageError(SystemExit):
    """A mistake on the command line: printed as one sentence, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f'error: {message}')


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """The options train.py and test.py have in common."""
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help=CFG_OPTIONS_HELP)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run are started',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by the launcher'
    )


def find_config(name: str) -> Path:
    """Path of a config given as a path or as 'package::path'.

    Raises:
        UsageError: if there is no such file; the nearest names are listed.
    """
    if '::' not in name:
        return existing_file(name, 'config', suffixes=('.py', '.json', '.yml', '.yaml'))
    package, _, inner = name.partition('::')
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f'{name}: the package {package!r} is not installed in this environment.')
    root = Path(list(spec.submodule_search_locations)[0])
    # An installed package carries its configs in .mim, a development checkout beside the package.
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if folder.is_dir():
            return existing_file(folder / inner, f'config of {package}', suffixes=('.py',))
    raise UsageError(
        f'{name}: {package} has no configs inside ({root / ".mim"} does not exist). '
        'Install it with its configs, or give the path of the file.'
    )


def existing_file(name: str | Path, what: str, suffixes: tuple[str, ...] = ()) -> Path:
    """Checks that a file is there.

    Raises:
        UsageError: if it is not; lists the files of the folder with the nearest names.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f'{what}: {path} is a folder, not a file.')
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    here = sorted(
        p.name for p in folder.iterdir() if p.is_dir() or not suffixes or p.suffix in suffixes
    )
    wanted = path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, here, n=5, cutoff=0.5)
    place = 'this folder' if folder == Path('.') else folder
    hint = f'nearest in {place}: {", ".join(near)}' if near else f'{place} has no similar name'
    raise UsageError(f'{what}: there is no file {path}; {hint}.')


def load_config(name: str, cfg_options: dict | None = None) -> Config:
    """Loads a config of any OpenMMLab project and applies ``--cfg-options``."""
    cfg = Config.fromfile(str(find_config(name)))
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    return cfg


def set_work_dir(cfg: Config, work_dir: str | None, config_name: str) -> None:
    """Command line before config before ``work_dirs/<name of the config>``."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(config_name).stem)


def set_up_launcher(cfg: Config, launcher: str, local_rank: int) -> None:
    """Prepares one process of a run; without an accelerator it joins a gloo group.

    MMEngine's own start-up selects a CUDA device, so on a CPU the group must exist before the
    runner is built (which then leaves it alone), and the wrapper must not name a device.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg.launcher = launcher
    if launcher != 'pytorch' or get_device() != 'cpu':
        return
    torch.distributed.init_process_group('gloo')
    wrapper = dict(
        cfg.get('model_wrapper_cfg')
        or dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    )
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper


def prepare_scope(cfg: Config) -> str:
    """The config's default scope, after what its project does before every run."""
    scope = cfg.get('default_scope') or 'mmengine'
    if scope == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    return scope


def distill_hooks(cfg: Config) -> list[dict]:
    """The DistillHook entries among the config's custom hooks."""

    def is_ours(hook: object) -> bool:
        kind = hook.get('type') if isinstance(hook, dict) else type(hook)
        kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
        return kind.rsplit('.', 1)[-1] == 'DistillHook'

    return [hook for hook in cfg.get('custom_hooks') or [] if is_ours(hook)]


def build_runner(cfg: Config):
    """Builds the runner the config asks for."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
