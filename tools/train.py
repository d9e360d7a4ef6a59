"""Train a model, distilled or plain.

A config with a DistillHook, or any plain config, trains as with mmdet's own script::

    python tools/train.py CONFIG [--work-dir DIR] [--amp] [--resume [FILE]] [--auto-scale-lr]

A config that says nothing about distillation is distilled by naming a teacher::

    python tools/train.py CONFIG --teacher CONFIG --teacher-checkpoint FILE [--recipe gdd]

Of a config that names its teacher, the same options without ``--teacher`` change the hook::

    python tools/train.py CONFIG [--recipe dkd] [--teacher-checkpoint FILE]
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from typing import Any

from _common import (
    UsageError,
    add_runner_arguments,
    build_runner,
    distill_hooks,
    existing_file,
    find_config,
    load_config,
    prepare_scope,
    set_up_launcher,
    set_work_dir,
)
from mmengine.config import Config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    add_runner_arguments(parser)
    group = parser.add_argument_group(
        'distillation',
        'of a config that has none; without --teacher, changes to the DistillHook of one that has',
    )
    group.add_argument(
        '--teacher', metavar='CONFIG', help="the teacher's config: path or 'package::path'"
    )
    group.add_argument(
        '--teacher-checkpoint', metavar='FILE', help="the teacher's weights: path or URL"
    )
    group.add_argument(
        '--teacher-random',
        action='store_true',
        help='use a teacher with random weights (to try the mechanics, never to learn)',
    )
    group.add_argument(
        '--recipe',
        metavar='NAME',
        help='method on features: gdd (default), gdd-shared, cwd, mgd, pkd; on logits: kd (default '
        'of classifiers), dkd, loca, dkd-loca, ckd, ipwd, ipwd-inverse; for boxes and masks: '
        'kd-bins, kd-masks; for classifiers: funmatch. Several are joined by +, as in gdd+kd',
    )
    group.add_argument(
        '--task-weight',
        type=float,
        metavar='W',
        help="multiplies the student's own losses (default 1)",
    )
    group.add_argument(
        '--init-student',
        metavar='PARTS',
        help="copy these matching parts of the teacher into the student, e.g. 'neck+head'",
    )
    return parser.parse_args(argv)


def add_distillation(cfg: Config, args: argparse.Namespace) -> None:
    """Appends a DistillHook to the config, which keeps its own hooks and imports.

    Raises:
        UsageError: options that contradict each other or the config, missing files.
    """
    options = _given_options(args)
    if args.teacher is None:
        if options and distill_hooks(cfg):
            change_hook(cfg, args)
        elif options:
            raise UsageError(
                f'without --teacher CONFIG there is nothing to distil, so {", ".join(options)} '
                'would have no effect; the config has no DistillHook in custom_hooks either.'
            )
        return
    if distill_hooks(cfg):
        raise UsageError(
            'the config already has a DistillHook in custom_hooks, so --teacher would make '
            'two. Train without --teacher (--teacher-checkpoint, --recipe, --task-weight and '
            '--init-student then change that hook), or start from the config of the student alone.'
        )
    if args.teacher_checkpoint is None and not args.teacher_random:
        raise UsageError(
            '--teacher needs --teacher-checkpoint FILE: a teacher without trained weights '
            'teaches noise. Only to try the mechanics, --teacher-random allows one '
            '(allow_random=True in a config).'
        )
    find_config(args.teacher)
    recipe = args.recipe or ('kd' if is_classifier(cfg) else 'gdd')
    check_options(args, recipe)
    hook: dict[str, Any] = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config=args.teacher,
            checkpoint=args.teacher_checkpoint,
            allow_random=args.teacher_random,
        ),
        recipe=recipe,
    )
    if args.task_weight is not None:
        hook['task_weight'] = args.task_weight
    if args.init_student is not None:
        hook['init_student'] = args.init_student
    change_training(cfg, recipe, args.cfg_options)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    add_import(cfg, 'mmkd_plugin')


def check_options(args: argparse.Namespace, recipe: str | None) -> None:
    """What can be wrong with the options whatever the config says.

    Raises:
        UsageError: options that contradict each other, a missing file, a bad value.
    """
    from mmkd_plugin import recipes
    from mmkd_plugin.init_student import parse_parts

    if args.teacher_checkpoint is not None and args.teacher_random:
        raise UsageError('--teacher-random and --teacher-checkpoint exclude each other.')
    if args.teacher_checkpoint is not None and '://' not in args.teacher_checkpoint:
        existing_file(args.teacher_checkpoint, 'teacher checkpoint', suffixes=('.pth', '.pt'))
    weight = args.task_weight
    if weight is not None and not (math.isfinite(weight) and weight >= 0):
        raise UsageError(f'--task-weight {weight:g} must be a number, 0 or more.')
    try:
        if recipe is not None:
            recipes.describe(recipe)
        if args.init_student is not None:
            parse_parts(args.init_student)
    except ValueError as error:
        raise UsageError(str(error)) from None


def is_classifier(cfg: Config) -> bool:
    """Whether the config's model is an image classifier: backbone and head, and no other head."""
    model = cfg.get('model') or {}
    return 'head' in model and not any(key.endswith('_head') for key in model)


def change_training(cfg: Config, recipe: str, cfg_options: dict | None) -> None:
    """FunMatch is more than a loss: it also changes mixup, optimizer and schedule of the config.

    What the command line says about these wins over the recipe.
    """
    if recipe != 'funmatch':
        return
    from mmkd_plugin.recipes import funmatch

    try:
        funmatch.apply_to(cfg)
    except ValueError as error:
        raise UsageError(f'--recipe funmatch: {error}') from None
    changed = ('model', 'optim_wrapper', 'param_scheduler')
    own = {k: v for k, v in (cfg_options or {}).items() if k.split('.')[0] in changed}
    try:
        cfg.merge_from_dict(own)
    except (AssertionError, KeyError, TypeError) as error:
        raise UsageError(
            f'--cfg-options {", ".join(own)} does not fit what --recipe funmatch has changed '
            f'({error}): its optimizer is {dict(cfg.optim_wrapper.optimizer)} and it has '
            f'{len(cfg.param_scheduler)} schedulers.'
        ) from None


def change_hook(cfg: Config, args: argparse.Namespace) -> None:
    """Command line before config, for a config that has a DistillHook.

    Raises:
        UsageError: a bad option, or one that this hook has no use for.
    """
    check_options(args, args.recipe)
    (hook,) = distill_hooks(cfg)
    if args.teacher_checkpoint is not None or args.teacher_random:
        if not isinstance(hook.get('teacher'), dict):
            raise UsageError(
                f"the config's DistillHook has teacher={hook.get('teacher')!r}, which takes no "
                'checkpoint: leave --teacher-checkpoint and --teacher-random out.'
            )
        hook['teacher'].update(checkpoint=args.teacher_checkpoint, allow_random=args.teacher_random)
    if args.recipe is not None:
        replace_recipe(cfg, hook, args.recipe, args.cfg_options)
    if args.task_weight is not None:
        hook['task_weight'] = args.task_weight
    if args.init_student is not None:
        hook['init_student'] = args.init_student


def replace_recipe(cfg: Config, hook: dict, recipe: str, cfg_options: dict | None) -> None:
    """Another method for a config whose DistillHook names teacher and recipe.

    Raises:
        UsageError: a hook with terms of its own.
    """
    if hook.get('terms') is not None:
        raise UsageError(
            f"--recipe {recipe}: the config's DistillHook has terms of its own, which a recipe "
            'would throw away. Start from the config of the pair or of the student instead.'
        )
    hook['recipe'] = recipe
    change_training(cfg, recipe, cfg_options)
    # Of the old recipe; the new one brings its own.
    hook.pop('task_weight', None)


def refuse_lost_options(cfg: Config, cfg_options: dict | None) -> None:
    """Configs copy a variable ``teacher`` into their hook before ``--cfg-options`` are applied.

    Raises:
        UsageError: an option that would change the variable and nothing else.
    """
    lost = [key for key in cfg_options or {} if key.split('.')[0] == 'teacher']
    for i, hook in enumerate(cfg.get('custom_hooks') or []):
        if lost and hook in distill_hooks(cfg) and hook.get('teacher') != cfg.get('teacher'):
            raise UsageError(
                f'--cfg-options {lost[0]}=... changes a variable that the config has already '
                f'copied into its DistillHook. Write custom_hooks.{i}.{lost[0]}=..., or '
                '--teacher-checkpoint FILE.'
            )


def _given_options(args: argparse.Namespace) -> list[str]:
    """The distillation options on the command line, apart from --teacher."""
    given = {
        '--teacher-checkpoint': args.teacher_checkpoint,
        '--recipe': args.recipe,
        '--task-weight': args.task_weight,
        '--init-student': args.init_student,
        '--teacher-random': args.teacher_random or None,
    }
    return [flag for flag, value in given.items() if value is not None]


def add_import(cfg: Config, module: str) -> None:
    """Adds a module to ``custom_imports``, so that the config saved by the run stands alone."""
    imports = dict(cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False))
    modules = imports.get('imports') or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if module not in modules:
        modules.append(module)
    cfg.custom_imports = dict(imports, imports=modules)
    importlib.import_module(module)


def protect_checkpoints(cfg: Config) -> None:
    """Keeps the old checkpoint of a distilled run until the new one is written.

    MMEngine's hook removes first and writes then, which loses both when the disk is full.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if distill_hooks(cfg) and isinstance(hook, dict) and hook.get('type') == 'CheckpointHook':
        add_import(cfg, 'mmkd_plugin')
        hook['type'] = 'mmkd_plugin.SafeCheckpointHook'


def apply_train_options(cfg: Config, args: argparse.Namespace) -> None:
    """--amp, --auto-scale-lr and --resume, with mmdet's meaning."""
    if args.amp:
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
            else str(existing_file(args.resume, 'checkpoint to resume', suffixes=('.pth', '.pt')))
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    refuse_lost_options(cfg, args.cfg_options)
    prepare_scope(cfg)
    set_work_dir(cfg, args.work_dir, args.config)
    apply_train_options(cfg, args)
    add_distillation(cfg, args)
    protect_checkpoints(cfg)
    set_up_launcher(cfg, args.launcher, args.local_rank)
    if cfg.get('resume') and cfg.get('load_from') is None:
        from mmkd_plugin.hooks import mend_last_checkpoint

        mend_last_checkpoint(cfg.work_dir)
    build_runner(cfg).train()


if __name__ == '__main__':
    main()
