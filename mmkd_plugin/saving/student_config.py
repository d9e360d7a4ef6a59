"""The config of the plain student, as it stands in the checkpoints of a distilled run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry, root

_PACKAGE = __name__.split('.')[0]


def student_config(cfg: Config) -> Config:
    """The config without its distillation, for tools that build the student from it.

    Such tools need not have this package. So its hooks go (``SafeCheckpointHook`` becomes
    MMEngine's own), with what a DistillHook was given at the top level, too. The package goes out
    of ``custom_imports``, unless parts that stay are its own: the import may fail where these are
    data sets or the like, and must succeed where they are in the model.
    """
    plain = cfg.to_dict()
    scope = plain.get('default_scope') or 'mmengine'
    dropped = _drop_hooks(plain, scope)
    for hook in dropped:
        for key in ('teacher', 'terms'):  # variables of the config file
            if isinstance(hook, dict) and key in plain and plain[key] == hook.get(key):
                del plain[key]
    _drop_import(plain, scope)
    return Config(plain)


def _drop_hooks(plain: dict, scope: str) -> list:
    """Takes the package's hooks out of a config, or puts MMEngine's own in their places.

    Returns:
        The custom hooks that went.
    """
    dropped, hooks = [], []
    for hook in plain.get('custom_hooks') or []:
        if not _is_own(_type_of(hook), scope):
            hooks.append(hook)
        elif _plain_hook(hook) is not None:
            hooks.append(_plain_hook(hook))
        else:
            dropped.append(hook)
    if 'custom_hooks' in plain:
        plain['custom_hooks'] = hooks
    for name, hook in list((plain.get('default_hooks') or {}).items()):
        if _is_own(_type_of(hook), scope):
            plain['default_hooks'].pop(name)
            if _plain_hook(hook) is not None:
                plain['default_hooks'][name] = _plain_hook(hook)
    return dropped


def _plain_hook(hook: Any) -> dict | None:
    if _type_of(hook).rsplit('.', 1)[-1] != 'SafeCheckpointHook':
        return None
    return dict(hook, type='CheckpointHook')


def _drop_import(plain: dict, scope: str) -> None:
    imports = plain.get('custom_imports')
    if not isinstance(imports, dict):
        return
    modules = imports.get('imports') or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if any(_is_own(kind, scope) for kind in _types(plain.get('model'))):
        return
    rest = {key: value for key, value in plain.items() if key != 'custom_imports'}
    if any(_is_own(kind, scope) for kind in _types(rest)):
        plain['custom_imports'] = dict(imports, allow_failed_imports=True)
        return
    modules = [m for m in modules if m.split('.')[0] != _PACKAGE]
    if modules:
        plain['custom_imports'] = dict(imports, imports=modules)
    else:
        del plain['custom_imports']


def _types(value: Any) -> Iterator[str]:
    """Every ``type`` in a nested config."""
    if isinstance(value, dict):
        if isinstance(value.get('type'), (str, type)):
            yield f'{_PACKAGE}.' * (value.get('_scope_') == _PACKAGE) + _type_of(value)
        for item in value.values():
            yield from _types(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _types(item)


def _type_of(config: Any) -> str:
    kind = config.get('type', '') if isinstance(config, dict) else type(config)
    return kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__qualname__}'


def _is_own(kind: str, scope: str) -> bool:
    """Whether a type is a part of this package: by its prefix, or found here before elsewhere."""
    if kind.split('.')[0] == _PACKAGE:
        return True
    if '.' in kind or scope != _PACKAGE:
        return False
    registries = [value for value in vars(root).values() if isinstance(value, Registry)]
    own = [r.children[_PACKAGE] for r in registries if _PACKAGE in r.children]
    for registry in own:
        registry.import_from_location()
    return any(kind in registry.module_dict for registry in own)
