"""Distillation said on a command line: the options of ``mmkd train``, put into a config.

The config keeps its own hooks and imports, and stands alone once the run has saved it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config, DictAction

from .. import recipes
from ..checks import shortened
from ..editing.distilled import distill_in_place
from ..hooks.entries import distill_hooks
from ..hooks.spikes import checked as checked_limit
from ..weights import AUTO
from ..weights.wishes import parse_flags
from .errors import UsageError

# Options that say something of the hook or its teacher, and where argparse keeps them.
_OPTIONS = {
    '--teacher-checkpoint': 'teacher_checkpoint',
    '--teacher-random': 'teacher_random',
    '--teacher-cfg-options': 'teacher_cfg_options',
    '--class-map': 'class_map',
    '--recipe': 'recipe',
    '--weights': 'weights',
    '--weight': 'weight',
    '--term-options': 'term_options',
    '--task-weight': 'task_weight',
    '--init-student': 'init_student',
    '--limit-spikes': 'limit_spikes',
    '--evaluate-teacher': 'evaluate_teacher',
}


class KeyValueAction(DictAction):
    """MMEngine's ``KEY=VALUE ...``, which says what is wrong with an option that has no ``=``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                parser.error(
                    f'{option_string} takes KEY=VALUE without white space around "=", '
                    f'not {shortened(value)!r}'
                )
        super().__call__(parser, namespace, values, option_string)


def add_distillation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which a config is distilled that says nothing about it."""
    group = parser.add_argument_group(
        'distillation',
        'of a config that has none; without --teacher, changes to the DistillHook of one that has',
    )
    group.add_argument(
        '--teacher', metavar='CONFIG', help="the teacher's config: path or 'package::path'"
    )
    group.add_argument(
        '--teacher-checkpoint',
        metavar='FILE',
        help="the teacher's weights: path or URL, or zoo for those published for its config",
    )
    group.add_argument(
        '--teacher-random',
        action='store_true',
        help='use a teacher with random weights (to try the mechanics, never to learn)',
    )
    group.add_argument(
        '--teacher-cfg-options',
        nargs='+',
        action=KeyValueAction,
        metavar='KEY=VALUE',
        help="--cfg-options for the teacher's config, such as model.backbone.depth=50",
    )
    group.add_argument(
        '--class-map',
        metavar='MAP',
        help="of a teacher of other classes: 'names' (those of equal names), 'a:b,c:d' (class a of "
        "the student is class b of the teacher) or '2,0,-1' (the teacher's index of each class of "
        'the student, -1 for none); terms on features need none',
    )
    group.add_argument(
        '--recipe',
        metavar='NAME',
        help=f'{_recipes_by_kind()}. Several are joined by +, as in gdd+kd, and '
        'a colon gives the weight of one, as in gdd:20+kd:auto',
    )
    group.add_argument(
        '--weight',
        action='append',
        metavar='NAME=VALUE',
        help='the weight of the term that is logged as loss_NAME: a number, auto, ratio:0.3 '
        "(that many times the task's gradient) or published; may be given several times",
    )
    group.add_argument(
        '--weights',
        metavar='published|auto',
        help="the weights of all terms: the numbers of the recipe's tables, or found in the first "
        'iterations',
    )
    group.add_argument(
        '--term-options',
        nargs='+',
        action=KeyValueAction,
        metavar='NAME.KEY=VALUE',
        help='changes terms by the names under which they are logged, such as '
        'kd.loss.temperature=2 gdd.begin=500',
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
    group.add_argument(
        '--limit-spikes',
        metavar='auto|off|NORM',
        help='where clip_grad is not set: scale steps down whose gradient is far above the usual '
        '(default auto, in runs that find weights), or above NORM',
    )
    group.add_argument(
        '--evaluate-teacher',
        action='store_true',
        help="the teacher's metrics on the validation set, once, before the first iteration",
    )


def _recipes_by_kind() -> str:
    """The names of all recipes, as the help of ``--recipe`` groups them."""
    told = {
        recipes.default_recipe(False): ' (default)',
        recipes.default_recipe(True): ' (default of classifiers)',
    }
    return '; '.join(
        f'{what}: {", ".join(name + told.get(name, "") for name in names)}'
        for what, names in recipes.grouped().items()
    )


def add_distillation(cfg: Config, args: argparse.Namespace) -> None:
    """Appends a DistillHook to the config, or changes the one that it has.

    Raises:
        UsageError: options that contradict each other or the config, missing files.
    """
    given = [flag for flag, name in _OPTIONS.items() if getattr(args, name) not in (None, False)]
    if args.teacher is None and not given:
        return
    _check_flags(args, given, bool(distill_hooks(cfg)))
    with _usage_errors():
        distill_in_place(
            cfg, _teacher(args), _method(args), args.cfg_options, ('--weight', '--term-options')
        )


@contextmanager
def _usage_errors() -> Iterator[None]:
    """What is raised as a wrong value or a missing file is a mistake on the command line here."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None


def _check_flags(args: argparse.Namespace, given: list[str], has_hook: bool) -> None:
    """Refuses flags that contradict each other, by their names."""
    if args.teacher is None and not has_hook:
        raise UsageError(
            f'without --teacher CONFIG there is nothing to distil, so {", ".join(given)} '
            'would have no effect; the config has no DistillHook in custom_hooks either.'
        )
    if args.teacher is not None and has_hook:
        raise UsageError(
            'the config already has a DistillHook in custom_hooks, so --teacher would make '
            f'two. Train without --teacher ({", ".join(_OPTIONS)} then change that hook), or '
            'start from the config of the student alone.'
        )
    if args.teacher_checkpoint is not None and args.teacher_random:
        raise UsageError('--teacher-random and --teacher-checkpoint exclude each other.')
    if args.teacher is not None and args.teacher_checkpoint is None and not args.teacher_random:
        raise UsageError(
            '--teacher needs --teacher-checkpoint FILE: a teacher without trained weights '
            'teaches noise. Only to try the mechanics, --teacher-random allows one '
            '(allow_random=True in a config).'
        )
    weight = args.task_weight
    if weight is not None and not (math.isfinite(weight) and weight >= 0):
        raise UsageError(f'--task-weight {weight:g} must be a number, 0 or more.')


def _teacher(args: argparse.Namespace) -> dict:
    """What the flags say of the teacher, as keys of the hook's ``teacher``."""
    teacher: dict[str, Any] = {}
    if args.teacher is not None:
        teacher['config'] = args.teacher
    if args.teacher_checkpoint is not None or args.teacher_random:
        teacher.update(checkpoint=args.teacher_checkpoint, allow_random=args.teacher_random)
    if args.class_map is not None:
        teacher['class_map'] = parse_class_map(args.class_map)
    if args.teacher_cfg_options:
        teacher['cfg_options'] = args.teacher_cfg_options
    return teacher


def _method(args: argparse.Namespace) -> dict:
    """What the flags say of terms and weights, as keys of the hook."""
    return dict(
        recipe=args.recipe,
        weights=parse_flags(args.weights, args.weight) or None,
        term_options=args.term_options,
        task_weight=args.task_weight,
        init_student=args.init_student,
        limit_spikes=_limit(args.limit_spikes),
        evaluate_teacher=args.evaluate_teacher or None,
    )


def _limit(text: str | None) -> str | float | None:
    """The value of ``--limit-spikes`` as the hook takes it."""
    if text in (None, AUTO, 'off'):
        return False if text == 'off' else text
    try:
        return checked_limit(float(text))
    except ValueError:
        raise UsageError(
            f'--limit-spikes {shortened(text)} must be auto, off, or a norm above 0.'
        ) from None


def parse_class_map(text: str) -> str | dict[str, str] | list[int]:
    """The value of ``--class-map`` as ``teacher.class_map`` takes it.

    Raises:
        UsageError: for another form.
    """
    if text == 'names':
        return text
    parts = [part.strip() for part in text.split(',')]
    pairs = [part.partition(':') for part in parts]
    if all(own and colon and theirs for own, colon, theirs in pairs):
        return {own.strip(): theirs.strip() for own, _, theirs in pairs}
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise UsageError(
            f'--class-map {shortened(text)!r} must be names, pairs of class names '
            "('student:teacher,student:teacher'), or the teacher's index of each class of the "
            "student ('2,0,-1')."
        ) from None


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
