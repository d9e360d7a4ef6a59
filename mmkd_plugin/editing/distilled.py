"""Distillation put into a config, or changed there: by :func:`distill`, or by flags of ``mmkd``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mmengine.config import Config

from ..checkpoints.download import SUFFIXES
from ..checkpoints.zoo import ZOO, published_weights
from ..hooks import DistillHook
from ..hooks.entries import distill_hooks
from ..model_config import existing_file, load_model_config
from ..recipes import default_recipe
from ..teacher import TEACHER_KEYS
from ..teacher.self_teacher import PREVIOUS_EPOCH
from ..terms.config import TermConfig
from ..terms.options import check_term_options, refuse_contradictions, split_weights
from ..terms.task import checked_task_weight
from ..weights.wishes import ALL, check_weights, joined
from .edits import add_import, change_training, is_classifier, merged, replace_method


def distill(
    cfg: Config,
    teacher: str | Path | dict | Config | None = None,
    checkpoint: str | Path | None = None,
    recipe: str | None = None,
    terms: Sequence[dict] | None = None,
    weights: Any = None,
    task_weight: float | str | None = None,
    init_student: str | None = None,
    term_options: dict | None = None,
    **others: Any,
) -> Config:
    """The config of a student with distillation in it, as ``mmkd train`` makes it of its flags.

    Args:
        cfg: the config of the student. It stays as it is; the result is a copy.
        teacher: the teacher's config as a path, ``'package::path'``, dict or Config; or all that
            the hook takes, ``dict(config=..., checkpoint=..., class_map=...)``; or
            ``'previous_epoch'``. Without it the config must have a DistillHook, which is changed;
            so it is by a dict without a ``config``, such as ``dict(class_map='names')``.
        checkpoint: the teacher's weights, a path or URL; or ``'zoo'`` for those that a package
            publishes for its config.
        recipe: the name of a recipe, such as ``'gdd+kd'``; or give
        terms: the terms. Without either the recipe is ``'kd'`` for classifiers, else ``'gdd'``.
        weights: of the terms: ``dict(gdd=20)``, ``'published'`` or ``'auto'``.
        task_weight: factor on the student's own losses; by default what the recipe says, else 1.
        init_student: parts to start from the teacher's weights, such as ``'neck+head'``.
        term_options: other changes to the terms by name.
        others: further keys of :class:`DistillHook`, such as ``seed`` or ``evaluate_teacher``.

    Returns:
        The config to build a Runner from.

    Raises:
        ValueError: a config that has a DistillHook beside a teacher that is given, or has none to
            change; a teacher without weights; or anything that the hook refuses.
        FileNotFoundError: no such config or checkpoint.

    Example:
        >>> cfg = distill(Config.fromfile('student.py'), 'teacher.py', 'teacher.pth',
        ...               recipe='gdd', weights=dict(gdd=20))  # doctest: +SKIP
        >>> Runner.from_cfg(cfg).train()  # doctest: +SKIP
    """
    if not isinstance(cfg, Config):
        raise ValueError(
            f'distill changes a copy of an MMEngine Config, not of a {type(cfg).__name__}. Read '
            'the file first: Config.fromfile(...).'
        )
    cfg = copy.deepcopy(cfg)
    method = dict(
        recipe=recipe,
        terms=terms,
        weights=weights,
        task_weight=task_weight,
        init_student=init_student,
        term_options=term_options,
        **others,
    )
    distill_in_place(cfg, copy.deepcopy(_teacher(teacher, checkpoint)), copy.deepcopy(method))
    return cfg


def distill_in_place(
    cfg: Config,
    teacher: str | dict,
    method: dict,
    cfg_options: dict | None = None,
    names: tuple[str, str] = ('weights', 'term_options'),
) -> None:
    """What :func:`distill` does to its copy, and the command line to the config it has read.

    Args:
        cfg: the config of a student, which is changed.
        teacher: ``'previous_epoch'``; keys of the hook's ``teacher`` with a ``config``, which add
            a hook; or without one, which change the hook that the config has.
        method: other keys of the hook; what is None says nothing.
        cfg_options: what wins over changes that a recipe makes to the training.
        names: what weights and term options are called, for messages.

    Raises:
        ValueError: see :func:`distill`.
        FileNotFoundError: no such config or checkpoint.
    """
    method = {key: value for key, value in method.items() if value is not None}
    hooks = distill_hooks(cfg)
    if teacher == PREVIOUS_EPOCH or 'config' in teacher:
        if hooks:
            raise ValueError(
                'the config already has a DistillHook in custom_hooks, and only one may attach. '
                'Name no teacher to change that one, or start from the config of the student alone.'
            )
        _add(cfg, teacher, method, cfg_options, names)
    elif not hooks:
        raise ValueError(
            'the config has no DistillHook in custom_hooks and no teacher is named, so there is '
            'nothing to distil from. Give the config of a teacher and its checkpoint.'
        )
    elif len(hooks) > 1:
        raise ValueError(
            f'the config has {len(hooks)} DistillHooks, and only one may attach. Join their '
            'terms in one.'
        )
    else:
        changes = cast(dict, teacher)  # 'previous_epoch' went another way
        _change(cfg, hooks[0], changes, method, cfg_options, names)


def _add(
    cfg: Config,
    teacher: str | dict,
    method: dict,
    cfg_options: dict | None,
    names: tuple[str, str],
) -> None:
    hook: dict[str, Any] = dict(teacher=teacher)
    if isinstance(teacher, dict):
        hook['teacher'] = {}
        _change_teacher(hook['teacher'], teacher)
    if 'terms' not in method:
        method.setdefault('recipe', default_recipe(is_classifier(cfg)))
    _change_method(hook, method, names)
    _check_hook(hook)
    _check_teacher(hook['teacher'], ('config', 'checkpoint', 'cfg_options'))
    change_training(cfg, hook.get('recipe'), cfg_options)
    hook = dict(type='mmkd_plugin.DistillHook', **hook)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    add_import(cfg, 'mmkd_plugin')


def _change(
    cfg: Config,
    hook: dict,
    teacher: dict,
    method: dict,
    cfg_options: dict | None,
    names: tuple[str, str],
) -> None:
    if teacher:
        if not isinstance(hook.get('teacher'), dict):
            raise ValueError(
                f"the config's DistillHook has teacher={hook.get('teacher')!r}, which takes no "
                f'checkpoint and no other options of a teacher.'
            )
        _change_teacher(hook['teacher'], teacher)
        _check_teacher(hook['teacher'], teacher)
    if 'recipe' in method or 'terms' in method:
        replace_method(cfg, hook, method.get('recipe'), cfg_options, 'terms' in method)
    _change_method(hook, method, names)
    _check_hook(hook)


def _change_teacher(teacher: dict, new: dict) -> None:
    """Puts what is new into the ``teacher`` of a hook; changes to its config are joined."""
    old = teacher.get('cfg_options')
    teacher.update(new)
    if isinstance(new.get('cfg_options'), dict):
        teacher['cfg_options'] = merged(old, new['cfg_options'], 'teacher.cfg_options')


def _change_method(hook: dict, method: dict, names: tuple[str, str]) -> None:
    """Puts what is new about terms and weights into a hook, over what it says already.

    Weights become wishes under ``weights``, also those of term options.

    Raises:
        ValueError: values that cannot be, or two weights for one term.
    """
    new = dict(method)
    wishes = check_weights(new.pop('weights', None))
    given = new.pop('term_options', None)
    if isinstance(given, dict):  # the keys may have dots
        given = merged(None, given, names[1])
    own, options = split_weights(check_term_options(given))
    refuse_contradictions(wishes, own, names)
    before, kept = split_weights(check_term_options(hook.get('term_options')))
    wishes = joined(check_weights(hook.get('weights')), before, wishes, own)
    weights = wishes[ALL] if list(wishes) == [ALL] else wishes
    hook.update(new)
    for key, value in (
        ('weights', weights),
        ('term_options', merged(kept, options, names[1])),
    ):
        hook.pop(key, None)
        if value:
            hook[key] = value


def _check_hook(hook: dict) -> None:
    """Refuses what the hook would refuse when the run is built."""
    of_registry = ('type', '_scope_', 'priority')
    DistillHook(**{key: value for key, value in hook.items() if key not in of_registry})
    for i, term in enumerate(hook.get('terms') or ()):
        TermConfig.from_dict(term, f'terms[{i}]')
    if hook.get('task_weight') is not None:
        checked_task_weight(hook['task_weight'], ())


def _check_teacher(teacher: Any, given: Sequence[str] | dict) -> None:
    """Looks at a teacher's config and file, if new keys were given, before a student is built."""
    if not isinstance(teacher, dict):
        return
    if 'checkpoint' in given:
        checkpoint = teacher.get('checkpoint')
        if checkpoint is None and not teacher.get('allow_random'):
            raise ValueError(
                'teacher: a teacher without trained weights teaches noise. Give checkpoint=FILE; '
                'only to try the mechanics, allow_random=True goes without.'
            )
        if checkpoint == ZOO:
            published_weights(teacher['config'])
        elif checkpoint is not None and '://' not in str(checkpoint):
            existing_file(checkpoint, 'teacher checkpoint', SUFFIXES)
    if 'config' in given or 'cfg_options' in given:
        load_model_config(teacher['config'], teacher.get('cfg_options'), 'teacher')


def _teacher(teacher: Any, checkpoint: Any) -> str | dict:
    """The hook's ``teacher`` in plain values, or what is to be changed of it."""
    if teacher == PREVIOUS_EPOCH:
        if checkpoint is not None:
            raise ValueError(f'teacher={PREVIOUS_EPOCH!r} is the student, and has no checkpoint.')
        return teacher
    if isinstance(teacher, Config) and 'config' in teacher:
        teacher = teacher.to_dict()
    if teacher is None:
        entry = {}
    elif isinstance(teacher, dict) and ('config' in teacher or set(teacher) <= set(TEACHER_KEYS)):
        entry = dict(teacher)
    else:
        entry = dict(config=teacher)
    if checkpoint is not None:
        if entry.get('checkpoint') not in (None, checkpoint):
            raise ValueError(
                f'checkpoint={str(checkpoint)!r} and teacher={{"checkpoint": '
                f'{entry["checkpoint"]!r}}} name two files. Give one of them.'
            )
        entry['checkpoint'] = str(checkpoint)
    _make_plain(entry)
    return entry


def _make_plain(teacher: dict) -> None:
    """Replaces a path or a Config by plain values."""
    config = teacher.get('config')
    if isinstance(config, Path):
        teacher['config'] = str(config)
    elif isinstance(config, Config):
        teacher['config'] = config.to_dict()
        if teacher.get('checkpoint') == ZOO:  # while the name of its file is known
            teacher['checkpoint'] = published_weights(config)
