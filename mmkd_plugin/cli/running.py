"""What the commands share: their parsers, reading configs and starting processes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..checks import shortened
from ..compat import check_package
from ..model_config import read_config
from .arguments import KeyValueAction
from .errors import UsageError

CFG_OPTIONS_HELP = (
    'overrides settings of the config, as key=value; a list is written key="[a,b]" or '
    'key=a,b, nested ones key="[(a,b),(c,d)]" (quotes needed, no white space)'
)


def new_parser(
    description: str | None, tool: str = '', prog: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a command; its help keeps the lines of the description.

    Args:
        description: with ``{command}`` where the command stands.
        tool: the script that is the same command.
        prog: the command as the user has called it, ``'mmkd train'``; None for the script.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=(description or '').replace('{command}', prog or f'python tools/{tool}'),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """The options train.py and test.py have in common."""
    parser.add_argument('--cfg-options', nargs='+', action=KeyValueAction, help=CFG_OPTIONS_HELP)
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let the checkpoint that is loaded or resumed hold pickled objects, which can run '
        'code; only for files you trust',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run are started',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by the launcher'
    )
    add_debug_argument(parser)


def add_debug_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--debug', action='store_true', help='show the traceback of errors, not one line'
    )


def load_config(name: str, cfg_options: dict | None = None) -> Config:
    """Loads a config of any OpenMMLab project and applies ``--cfg-options``.

    Raises:
        UsageError: a config that is missing, broken or has no model; options that do not fit.
    """
    try:
        cfg = read_config(name)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    if cfg_options:
        _apply_options(cfg, cfg_options)
    if not isinstance(cfg.get('model'), (dict, nn.Module)):
        raise UsageError(
            f'the config {shortened(name)} has no model: nothing in it would be trained or tested '
            f'(its entries: {", ".join(cfg) or "none"}). Give the full config of a model, or add '
            'model = dict(type=...).'
        )
    return cfg


def _apply_options(cfg: Config, options: dict) -> None:
    try:
        cfg.merge_from_dict(options)
    except (AssertionError, IndexError, KeyError, TypeError) as error:
        of_hooks = [key for key in options if key.startswith('custom_hooks.')]
        reason = error.args[0] if error.args else type(error).__name__
        raise UsageError(
            f'--cfg-options does not fit the config: {reason}.{_BEFORE_HOOK if of_hooks else ""}'
        ) from error
    if not isinstance(cfg.get('custom_hooks', []), (list, tuple, type(None))):
        raise UsageError(
            f'--cfg-options changes an entry of custom_hooks, which the config does not have.'
            f'{_BEFORE_HOOK}'
        )


_BEFORE_HOOK = (
    ' --cfg-options are applied to the config as it is in its file, before --teacher adds a '
    'DistillHook; that one is changed by --recipe, --weight, --term-options, '
    '--teacher-cfg-options, --class-map, --task-weight and --init-student.'
)


def set_work_dir(cfg: Config, work_dir: str | None, config_name: str) -> None:
    """Command line before config before ``work_dirs/<name of the config>``."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(config_name).stem)


def is_first_process(launcher: str) -> bool:
    """Whether this is the only process or rank 0, before the ranks know of each other."""
    rank = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    return int(os.environ.get(rank.get(launcher, ''), 0)) == 0


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
    check_package(scope)
    if scope == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    return scope


def build_runner(cfg: Config):
    """Builds the runner the config asks for."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
