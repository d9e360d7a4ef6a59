"""The entries of hooks in a config."""

from __future__ import annotations

from mmengine.config import Config


def distill_hooks(cfg: Config) -> list[dict]:
    """The DistillHook entries among the config's custom hooks."""
    return [hook for hook in cfg.get('custom_hooks') or [] if class_name(hook) == 'DistillHook']


def class_name(hook: object) -> str:
    """The class of an entry, without its scope."""
    kind = hook.get('type') if isinstance(hook, dict) else type(hook)
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return kind.rsplit('.', 1)[-1]
