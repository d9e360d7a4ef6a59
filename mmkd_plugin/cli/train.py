"""``mmkd train`` and ``tools/train.py``: train a model, distilled or plain."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext

from mmengine.config import Config

from ..checkpoints.download import SUFFIXES
from ..editing.edits import add_hook
from ..hooks.entries import distill_hooks
from ..hooks.loaded_weights import CheckWeightsHook, read_safely
from ..model_config import existing_file
from ..saving.mend import check_resume
from ..saving.work_dir import claimed
from .arguments import add_distillation, add_distillation_arguments, refuse_lost_options
from .errors import UsageError, one_line_errors
from .running import (
    add_runner_arguments,
    build_runner,
    is_first_process,
    load_config,
    new_parser,
    prepare_scope,
    set_up_launcher,
    set_work_dir,
)

DESCRIPTION = """\
Train a model, distilled or plain.

A config with a DistillHook, or any plain config, trains as with mmdet's own script::

    {command} CONFIG [--work-dir DIR] [--amp] [--resume [FILE]] [--auto-scale-lr]

A config that says nothing about distillation is distilled by naming a teacher::

    {command} CONFIG --teacher CONFIG --teacher-checkpoint FILE [--recipe gdd]

Of a config that names its teacher, the same options without ``--teacher`` change the hook::

    {command} CONFIG [--recipe dkd] [--teacher-checkpoint FILE]

An error that the user can mend is the last line of the output; --debug shows its traceback.
"""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = new_parser(DESCRIPTION, 'train.py', prog)
    parser.add_argument(
        'config',
        help="config file: a path, or 'package::path' such as 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'",
    )
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help='go on from a checkpoint; without a file, from the last in the work dir',
    )
    parser.add_argument(
        '--seed-steps',
        action='store_true',
        help='random numbers from seed and iteration (StepSeedHook): with random augmentation or '
        'dropout, too, a resumed run repeats what an uninterrupted one does',
    )
    parser.add_argument(
        '--no-save-on-signal',
        dest='save_on_signal',
        action='store_false',
        help='let SIGTERM and Ctrl-C end a distilled run at once, without a checkpoint',
    )
    add_runner_arguments(parser)
    add_distillation_arguments(parser)
    return parser.parse_args(argv)


def add_hooks(cfg: Config, args: argparse.Namespace) -> None:
    """What makes a run easier to interrupt and to resume, unless the config has it."""
    if distill_hooks(cfg) and args.save_on_signal:
        add_hook(cfg, 'interrupt', 'InterruptHook')
    if args.seed_steps:
        add_hook(cfg, 'step_seed', 'StepSeedHook')


def apply_train_options(cfg: Config, args: argparse.Namespace) -> None:
    """--amp, --auto-scale-lr and --resume, with mmdet's meaning."""
    if args.amp:
        if not isinstance(cfg.get('optim_wrapper'), dict):
            raise UsageError('--amp needs optim_wrapper = dict(optimizer=...) in the config.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        auto = cfg.get('auto_scale_lr') or {}
        if 'base_batch_size' not in auto:
            raise UsageError(
                '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the '
                'config: the batch size its learning rate was chosen for.'
            )
        cfg.auto_scale_lr = dict(auto, enable=True)
    if args.resume is not None:
        cfg.resume = True
        # With load_from=None the runner looks for the last checkpoint of the work dir.
        cfg.load_from = (
            None
            if args.resume == 'auto'
            else str(existing_file(args.resume, 'checkpoint to resume', SUFFIXES))
        )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Trains what the command line says; ``prog`` is what the user has called."""
    args = parse_args(argv, prog)
    with one_line_errors(args.debug):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Trains what the command line says."""
    cfg = load_config(args.config, args.cfg_options)
    refuse_lost_options(cfg, args.cfg_options)
    prepare_scope(cfg)
    set_work_dir(cfg, args.work_dir, args.config)
    apply_train_options(cfg, args)
    add_distillation(cfg, args)
    add_hooks(cfg, args)
    set_up_launcher(cfg, args.launcher, args.local_rank)
    with claimed(cfg.work_dir) if is_first_process(args.launcher) else nullcontext():
        if cfg.get('resume') and is_first_process(args.launcher):
            check_resume(cfg.work_dir, cfg.get('load_from'))
        with read_safely(args.trust_checkpoint):
            runner = build_runner(cfg)
            if not distill_hooks(cfg):  # which look at the weights themselves
                runner.register_hook(CheckWeightsHook(test=False))
            runner.train()
