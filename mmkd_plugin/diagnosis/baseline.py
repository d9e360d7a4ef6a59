"""baseline-differs: what else than distillation tells a distilled run from the student alone."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from ..hooks.entries import class_name, distill_hooks
from .findings import Report

# What decides a training; where results go, what is logged and what is tested do not.
KEYS = (
    'model',
    'data_preprocessor',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'train_dataloader',
    'load_from',
    'auto_scale_lr',
    'randomness',
)
_OWN_HOOKS = ('DistillHook', 'InterruptHook', 'SafeCheckpointHook', 'StepSeedHook')
_NO_MATTER = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')
_MOST = 8  # differences in the evidence


def check_baseline(distilled: Config, baseline: Config, report: Report) -> None:
    """Adds the finding for configs that differ in more than distillation."""
    found: dict[str, list] = {}
    for key in KEYS:
        _compare(key, distilled.get(key), baseline.get(key), found)
    _compare('custom_hooks', _hooks(distilled), _hooks(baseline), found)
    for hook in distill_hooks(distilled):  # weights that the student alone does not begin with
        begin = hook.get('init_student') if isinstance(hook, dict) else hook.init_student
        _compare('DistillHook.init_student', begin, None, found)
    if not found:
        return
    evidence: dict[str, Any] = dict(differences=len(found))
    evidence.update(list(found.items())[:_MOST])
    key, (own, theirs) = next(iter(found.items()))
    advice = f'{key}: {own!r} in the distilled config, {theirs!r} in the baseline; make them equal'
    report.add('baseline-differs', key, evidence, advice)


def _hooks(cfg: Config) -> list:
    hooks = cfg.get('custom_hooks') or []
    return [hook for hook in hooks if class_name(hook) not in _OWN_HOOKS]


def _compare(key: str, own: Any, theirs: Any, found: dict[str, list]) -> None:
    """Adds where two values differ, as deep as can be; None and a missing key are the same."""
    if isinstance(own, dict) and isinstance(theirs, dict):
        for name in dict.fromkeys([*own, *theirs]):
            if name not in _NO_MATTER and name != '_scope_':
                _compare(f'{key}.{name}', own.get(name), theirs.get(name), found)
    elif _is_list(own) and _is_list(theirs) and len(own) == len(theirs):
        for i, (a, b) in enumerate(zip(own, theirs)):
            _compare(f'{key}.{i}', a, b, found)
    elif _plain(own) != _plain(theirs):
        found[key] = [_plain(own), _plain(theirs)]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _plain(value: Any) -> Any:
    """A value that can be compared and shown; empty lists and dicts count as nothing."""
    if isinstance(value, type):
        return value.__name__
    if _is_list(value) or isinstance(value, dict):
        return str(value) if value else None
    return value
