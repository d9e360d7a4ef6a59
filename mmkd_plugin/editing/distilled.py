"""Distillation put into a config: by :func:`distill` from Python, by flags from ``tools/``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checkpoints.download import SUFFIXES
from ..hooks import DistillHook
from ..hooks.entries import distill_hooks
from ..model_config import existing_file, load_model_config
from ..teacher.self_teacher import PREVIOUS_EPOCH
from .edits import add_import, change_training, is_classifier


def distill(
    cfg: Config,
    teacher: str | Path | dict | Config,
    checkpoint: str | None = None,
    recipe: str | None = None,
    terms: Sequence[dict] | None = None,
    weights: Any = None,
    task_weight: float | str | None = None,
    init_student: str | None = None,
    term_options: dict | None = None,
    **others: Any,
) -> Config:
    """The config of a student with distillation in it, as ``tools/train.py --teacher`` makes it.

    Args:
        cfg: the config of the student alone. It stays as it is; the result is a copy.
        teacher: the teacher's config as a path, ``'package::path'``, dict or Config; or all that
            the hook takes, ``dict(config=..., checkpoint=..., class_map=...)``; or
            ``'previous_epoch'``.
        checkpoint: the teacher's weights, a path or URL.
        recipe: the name of a recipe, such as ``'gdd+kd'``; or give
        terms: the terms. Without either the recipe is ``'kd'`` for classifiers, else ``'gdd'``.
        weights: of the terms: ``dict(gdd=20)``, ``'published'`` or ``'auto'``.
        task_weight: factor on the student's own losses; by default what the recipe says, else 1.
        init_student: parts to start from the teacher's weights, such as ``'neck+head'``.
        term_options: other changes to the terms by name.
        others: further keys of :class:`DistillHook`, such as ``seed``.

    Returns:
        The config to build a Runner from.

    Raises:
        ValueError: a config that has a DistillHook already or is none, a teacher without weights,
            or anything that the hook refuses.
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
    hook: dict[str, Any] = dict(
        teacher=_teacher(teacher, checkpoint),
        recipe=recipe,
        terms=terms,
        weights=weights,
        task_weight=task_weight,
        init_student=init_student,
        term_options=term_options,
        **others,
    )
    cfg = copy.deepcopy(cfg)
    add_hook_to(cfg, copy.deepcopy({k: v for k, v in hook.items() if v is not None}))
    return cfg


def add_hook_to(cfg: Config, hook: dict, cfg_options: dict | None = None) -> None:
    """Appends a DistillHook to a config, after a look at everything that can be wrong with it.

    Args:
        cfg: the config of a student, which is changed.
        hook: keys of the hook, without its type.
        cfg_options: what wins over changes that a recipe makes to the training.

    Raises:
        ValueError: see :func:`distill`.
        FileNotFoundError: no such config or checkpoint.
    """
    if distill_hooks(cfg):
        raise ValueError(
            'the config already has a DistillHook in custom_hooks, and only one may attach. Start '
            'from the config of the student alone.'
        )
    if 'terms' not in hook:
        hook.setdefault('recipe', 'kd' if is_classifier(cfg) else 'gdd')
    check_hook(hook)
    check_teacher(hook['teacher'])
    change_training(cfg, hook.get('recipe'), cfg_options)
    hook = dict(type='mmkd_plugin.DistillHook', **hook)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    add_import(cfg, 'mmkd_plugin')


def check_hook(hook: dict) -> None:
    """Refuses what the hook would refuse when the run is built.

    Raises:
        ValueError: saying which key is wrong.
    """
    of_registry = ('type', '_scope_', 'priority')
    DistillHook(**{key: value for key, value in hook.items() if key not in of_registry})


def check_teacher(teacher: Any) -> None:
    """Looks at the config and the file of a teacher before anything of the student is built.

    Raises:
        ValueError: no weights, a config that is none or has no use for its ``cfg_options``.
        FileNotFoundError: no such config or checkpoint.
    """
    if not (isinstance(teacher, dict) and 'config' in teacher):
        return
    file = teacher.get('checkpoint')
    if file is None and not teacher.get('allow_random'):
        raise ValueError(
            'teacher: a teacher without trained weights teaches noise. Give checkpoint=FILE; only '
            'to try the mechanics, allow_random=True goes without.'
        )
    if file is not None and '://' not in str(file):
        existing_file(file, 'teacher checkpoint', SUFFIXES)
    load_model_config(teacher['config'], teacher.get('cfg_options'), 'teacher')


def _teacher(teacher: Any, checkpoint: str | None) -> str | dict:
    """The hook's ``teacher`` in plain values."""
    if teacher == PREVIOUS_EPOCH:
        if checkpoint is not None:
            raise ValueError(f'teacher={PREVIOUS_EPOCH!r} is the student, and has no checkpoint.')
        return teacher
    if isinstance(teacher, Config):
        teacher = teacher.to_dict()
    whole = isinstance(teacher, dict) and 'config' in teacher
    entry = dict(teacher) if whole else dict(config=teacher)
    if isinstance(entry['config'], Path):
        entry['config'] = str(entry['config'])
    elif isinstance(entry['config'], Config):
        entry['config'] = entry['config'].to_dict()
    if checkpoint is not None:
        if entry.get('checkpoint') not in (None, checkpoint):
            raise ValueError(
                f'checkpoint={str(checkpoint)!r} and teacher={{"checkpoint": '
                f'{entry["checkpoint"]!r}}} name two files. Give one of them.'
            )
        entry['checkpoint'] = str(checkpoint)
    return entry
