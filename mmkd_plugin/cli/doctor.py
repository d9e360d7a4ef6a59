"""``mmkd doctor`` and ``tools/doctor.py``: what can be known of a pair before it is trained."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console

from ..checkpoints.download import SUFFIXES
from ..checkpoints.zoo import ZOO
from ..diagnosis.examine import Options, examine
from ..diagnosis.findings import Report
from ..hooks.entries import distill_hooks
from ..model_config import existing_file
from .arguments import (
    KeyValueAction,
    add_distillation,
    add_distillation_arguments,
    refuse_lost_options,
)
from .doctor_report import Bar, show
from .errors import UsageError, sentence_of
from .running import (
    CFG_OPTIONS_HELP,
    add_debug_argument,
    load_config,
    new_parser,
    prepare_scope,
)
from .runs import write_json

USAGE = 2  # exit status
DESCRIPTION = """\
Say before training whether a pair is wired right, whether its teacher can help, and which weights
its terms need. Nothing is trained, and nothing is written but the report.

    {command} CONFIG [--student-checkpoint FILE] [--baseline CONFIG] [--json FILE]

CONFIG is distilled, or plain with a teacher beside it::

    {command} CONFIG --teacher CONFIG --teacher-checkpoint FILE [--recipe gdd]

Exit status: 0 without findings of severity error, 1 with, 2 for a mistake on the command line.
docs/why-not.md explains the findings.
"""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = new_parser(DESCRIPTION, 'doctor.py', prog)
    parser.add_argument('config', help="config file: a path or 'package::path'")
    parser.add_argument(
        '--student-checkpoint',
        metavar='FILE',
        help='weights of the student trained alone, to compare with the teacher; without them no '
        'verdict is given',
    )
    parser.add_argument(
        '--batches', type=int, default=8, help='training batches for the terms (%(default)s)'
    )
    parser.add_argument(
        '--images', type=int, default=200, help='labelled images at most (%(default)s)'
    )
    parser.add_argument(
        '--baseline', metavar='CONFIG', help='config of the student alone, to compare the trainings'
    )
    parser.add_argument('--json', metavar='FILE', help='also write the report to this file')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValueAction, help=CFG_OPTIONS_HELP)
    add_debug_argument(parser)
    add_distillation_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Examines what the command line says; ``prog`` is what the user has called.

    Returns:
        The exit status.
    """
    args = parse_args(argv, prog)
    try:
        cfg, options = prepare(args)
    except (UsageError, OSError, ValueError) as error:
        if args.debug:
            traceback.print_exc()
        text = str(error) if isinstance(error, UsageError) else f'error: {sentence_of(error)}'
        print(text, file=sys.stderr)
        return USAGE
    report = diagnose(cfg, options)
    show(Console(), report)
    if args.json is not None:
        write_json(Path(args.json), report.as_dict())
    return report.status


def prepare(args: argparse.Namespace) -> tuple[Config, Options]:
    """The config and what is looked at.

    Raises:
        UsageError: options that contradict each other or the config, missing files.
    """
    for name in ('batches', 'images'):
        if getattr(args, name) < 1:
            raise UsageError(f'--{name} {getattr(args, name)} must be 1 or more.')
    if args.json is not None and not Path(args.json).expanduser().absolute().parent.is_dir():
        raise UsageError(f'--json {args.json}: there is no folder {Path(args.json).parent}.')
    cfg = load_config(args.config, args.cfg_options)
    refuse_lost_options(cfg, args.cfg_options)
    prepare_scope(cfg)
    add_distillation(cfg, args)
    hooks = len(distill_hooks(cfg))
    if hooks != 1:
        raise UsageError(
            f'the config has {hooks} DistillHooks in custom_hooks, and one is examined. '
            'Give --teacher CONFIG --teacher-checkpoint FILE with a plain config.'
        )
    if 'train_dataloader' not in cfg:
        raise UsageError('the config has no train_dataloader, so there is nothing to learn from.')
    checkpoint = args.student_checkpoint
    if checkpoint is not None and '://' not in checkpoint and checkpoint != ZOO:
        existing_file(checkpoint, 'student checkpoint', SUFFIXES)
    baseline = None if args.baseline is None else load_config(args.baseline)
    return cfg, Options(args.batches, args.images, checkpoint, baseline)


def diagnose(cfg: Config, options: Options) -> Report:
    """:func:`examine` with a progress bar, and without what packages print meanwhile."""
    console = Console(stderr=True)
    with Bar(console) as bar, silence():
        options.on_progress = bar
        return examine(cfg, options)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps logs, warnings and prints of other packages away from the report."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
