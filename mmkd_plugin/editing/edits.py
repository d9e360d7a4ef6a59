"""What the tools change in a config as a whole: its hooks, its imports, its training."""

from __future__ import annotations

import importlib

from mmengine.config import Config

from ..hooks.entries import class_name
from ..recipes import funmatch, methods


def is_classifier(cfg: Config) -> bool:
    """Whether the config's model is an image classifier: backbone and head, and no other head."""
    model = cfg.get('model') or {}
    return 'head' in model and not any(key.endswith('_head') for key in model)


def add_import(cfg: Config, module: str) -> None:
    """Adds a module to ``custom_imports``, so that the config saved by the run stands alone."""
    imports = dict(cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False))
    modules = imports.get('imports') or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if module not in modules:
        modules.append(module)
    cfg.custom_imports = dict(imports, imports=modules)
    importlib.import_module(module)


def add_hook(cfg: Config, key: str, kind: str) -> None:
    """Adds a hook of this package to the default hooks, unless the config has one already."""
    default = dict(cfg.get('default_hooks') or {})
    hooks = [*(cfg.get('custom_hooks') or []), *default.values()]
    if kind not in [class_name(hook) for hook in hooks]:
        cfg.default_hooks = dict(default, **{key: dict(type=f'mmkd_plugin.{kind}')})
        add_import(cfg, 'mmkd_plugin')


def replace_method(
    cfg: Config, hook: dict, recipe: str | None, cfg_options: dict | None, terms: bool = False
) -> None:
    """Another method for a config whose DistillHook names its teacher and a method.

    Args:
        cfg: the config, whose training a recipe may change.
        hook: the entry of its DistillHook.
        recipe: the new recipe, if there is one.
        cfg_options: what wins over the changes that the recipe makes to the training.
        terms: whether new terms are given.

    Raises:
        ValueError: a hook with terms of its own, or a training that the recipe cannot change.
    """
    if recipe is not None and hook.get('terms') is not None:
        raise ValueError(
            f"recipe {recipe}: the config's DistillHook has terms of its own, which a recipe "
            'would throw away (a config that a run wrote has the terms of its recipe). Start from '
            'the config of the pair or of the student instead.'
        )
    if recipe is not None:
        hook['recipe'] = recipe
        change_training(cfg, recipe, cfg_options)
    if terms and recipe is None:
        hook.pop('recipe', None)
    # Of the old method; the new one brings its own. What the command line says of them is new.
    place = f'custom_hooks.{next(i for i, entry in enumerate(cfg.custom_hooks) if entry is hook)}'
    for key in ('task_weight', 'term_options', 'weights'):
        if not any(f'{said}.'.startswith(f'{place}.{key}.') for said in cfg_options or {}):
            hook.pop(key, None)


def merged(old: dict | None, new: dict, where: str) -> dict:
    """Options with dots in their keys as nested dicts, on top of what the config has at ``where``.

    Raises:
        ValueError: options that do not fit the old ones.
    """
    options = Config(dict(old or {}))
    try:
        options.merge_from_dict(new)
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f'{where} {", ".join(map(str, new))}: {error}') from None
    return options.to_dict()


def change_training(cfg: Config, recipe: str | None, cfg_options: dict | None = None) -> None:
    """FunMatch is more than a loss: it also changes mixup, optimizer and schedule of the config.

    What the command line says about these wins over the recipe.

    Raises:
        ValueError: a training that FunMatch does not fit.
    """
    if recipe is None or 'funmatch' not in methods(recipe):
        return
    try:
        funmatch.apply_to(cfg)
    except ValueError as error:
        raise ValueError(f'recipe funmatch: {error}') from None
    changed = ('model', 'optim_wrapper', 'param_scheduler')
    own = {k: v for k, v in (cfg_options or {}).items() if k.split('.')[0] in changed}
    try:
        cfg.merge_from_dict(own)
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(
            f'--cfg-options {", ".join(own)} does not fit what the recipe funmatch has changed '
            f'({error}): its optimizer is {dict(cfg.optim_wrapper.optimizer)} and it has '
            f'{len(cfg.param_scheduler)} schedulers.'
        ) from None
