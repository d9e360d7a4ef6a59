"""``mmkd test`` and ``tools/test.py``: test a checkpoint."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import METRICS
from mmengine.runner import Runner

from ..checkpoints.download import SUFFIXES
from ..checkpoints.zoo import ZOO, published_weights
from ..hooks.entries import distill_hooks
from ..hooks.loaded_weights import CheckWeightsHook, read_safely
from ..model_config import existing_file
from .errors import UsageError, one_line_errors
from .running import (
    add_runner_arguments,
    build_runner,
    load_config,
    new_parser,
    prepare_scope,
    set_up_launcher,
    set_work_dir,
)

DESCRIPTION = """\
Test a checkpoint; of a distilled model only the student is there, so no teacher is needed.

CONFIG may be the distillation config (its teacher's files need not exist) or the plain one::

    {command} CONFIG CHECKPOINT [--out FILE.pkl] [--show-dir DIR] [--tta]
"""
# How each project's visualisation hook names its switches: (draw, folder).
_DRAW_KEYS = {
    'mmdet': ('draw', 'test_out_dir'),
    'mmseg': ('draw', None),
    'mmpretrain': ('enable', 'out_dir'),
}


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = new_parser(DESCRIPTION, 'test.py', prog)
    parser.add_argument('config', help="config file: a path or 'package::path'")
    parser.add_argument(
        'checkpoint', help='checkpoint: path or URL, or zoo for the file published for the config'
    )
    parser.add_argument('--work-dir', help='folder for the metrics')
    parser.add_argument('--out', metavar='FILE', help='save the predictions to this pickle file')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='save painted images here')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds each window stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_runner_arguments(parser)
    return parser.parse_args(argv)


def drop_distillation(cfg: Config) -> None:
    """Removes the DistillHook: a test has nothing to distil, and the teacher may be elsewhere."""
    hooks = distill_hooks(cfg)
    if hooks:
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook not in hooks]


def switch_on_drawing(cfg: Config, args: argparse.Namespace, scope: str) -> None:
    """Makes the project's visualisation hook draw the predictions.

    Raises:
        UsageError: if the config has no such hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None or scope not in _DRAW_KEYS:
        raise UsageError(
            '--show and --show-dir need default_hooks.visualization in the config, e.g. '
            "visualization=dict(type='DetVisualizationHook'), and the scope mmdet, mmseg "
            f'or mmpretrain (the scope is {scope}).'
        )
    draw, folder = _DRAW_KEYS[scope]
    hook[draw] = True
    if args.show:
        hook['show'] = True
        hook['wait_time'] = args.wait_time
    if args.show_dir and folder:
        hook[folder] = args.show_dir
    elif args.show_dir:
        cfg.setdefault('visualizer', {})['save_dir'] = args.show_dir


def picture_folder(runner: Runner, show_dir: str, scope: str) -> Path:
    """Where each project's hook puts the pictures: for mmdet, below the folder of the run."""
    if scope == 'mmdet':
        return Path(runner.work_dir, runner.timestamp, show_dir)
    return Path(show_dir, 'vis_data', 'vis_image') if scope == 'mmseg' else Path(show_dir)


def switch_on_tta(cfg: Config, scope: str) -> None:
    """Wraps model and pipeline for test-time augmentation; mmdet has a default: both flips.

    Raises:
        UsageError: if the config describes none and its project has no default here.
    """
    if scope != 'mmdet' and not ('tta_model' in cfg and 'tta_pipeline' in cfg):
        raise UsageError('--tta needs tta_model and tta_pipeline in the config.')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    cfg.setdefault(
        'tta_model',
        dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
    )
    if 'tta_pipeline' not in cfg:
        meta_keys = (
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'flip',
            'flip_direction',
        )
        flips = [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)]
        cfg.tta_pipeline = [
            *copy.deepcopy(dataset.pipeline[:-1]),
            dict(
                type='TestTimeAug',
                transforms=[flips, [dict(type='PackDetInputs', meta_keys=meta_keys)]],
            ),
        ]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Tests what the command line says; ``prog`` is what the user has called."""
    args = parse_args(argv, prog)
    with one_line_errors(args.debug):
        test(args)


def test(args: argparse.Namespace) -> None:
    """Tests what the command line says."""
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise UsageError(
            f'--out writes a pickle: the name must end in .pkl or .pickle, not {args.out}.'
        )
    cfg = load_config(args.config, args.cfg_options)
    if args.checkpoint == ZOO:
        args.checkpoint = published_weights(args.config, 'config')
    elif '://' not in args.checkpoint:
        existing_file(args.checkpoint, 'checkpoint', SUFFIXES)
    scope = prepare_scope(cfg)
    set_work_dir(cfg, args.work_dir, args.config)
    cfg.load_from = args.checkpoint
    drop_distillation(cfg)
    if args.show or args.show_dir:
        switch_on_drawing(cfg, args, scope)
    if args.tta:
        switch_on_tta(cfg, scope)
    set_up_launcher(cfg, args.launcher, args.local_rank)
    with read_safely(args.trust_checkpoint):
        runner = build_runner(cfg)
        runner.register_hook(CheckWeightsHook(test=True))
        if args.out is not None:
            dump = 'mmdet.DumpDetResults' if scope == 'mmdet' else 'DumpResults'
            writer = METRICS.build(dict(type=dump, out_file_path=args.out))
            runner.test_evaluator.metrics.append(writer)
        runner.test()
    if args.show_dir:
        print(f'The pictures are in {picture_folder(runner, args.show_dir, scope).resolve()}')
