"""Loading all of a model from a state dict, and the facts about what fits."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..class_map import class_names
from ..errors import CheckpointError
from .download import fetch
from .file import few
from .load import load_file, read_file, verify_file

__all__ = [
    'CheckpointError',
    'Fit',
    'classes_of',
    'fetch',
    'fill',
    'load_all',
    'load_file',
    'plain_state',
    'read_file',
    'state_dict_of',
    'verify_file',
]


def state_dict_of(checkpoint: Any, key: str) -> dict:
    """The weights in a loaded checkpoint, without the ``module.`` prefix of DDP.

    Raises:
        CheckpointError: if there are no weights in it.
    """
    state = checkpoint
    if isinstance(checkpoint, dict):
        for name in ('state_dict', 'model'):
            if isinstance(checkpoint.get(name), dict):
                state = checkpoint[name]
                break
    if not isinstance(state, dict) or not any(torch.is_tensor(v) for v in state.values()):
        found = (
            [str(name) for name in checkpoint][:10]
            if isinstance(checkpoint, dict)
            else type(checkpoint).__name__
        )
        raise CheckpointError(
            f"{key} holds no weights: expected a 'state_dict' of tensors, found {found}."
        )
    return plain_state(state, key)


def plain_state(state: dict, key: str) -> OrderedDict:
    """A state dict of its own without the ``module.`` prefix of DDP, its versions checked.

    Raises:
        CheckpointError: if a name is no text.
    """
    for name in state:
        if not isinstance(name, str):
            raise CheckpointError(
                f'{key}: one of its weights has a name that is no text ({name!r}).'
            )
    plain: Any = OrderedDict((_without_prefix(name), value) for name, value in state.items())
    # Versions of the modules that saved it; by them modules convert names of older versions.
    versions = getattr(state, '_metadata', None)
    plain._metadata = {
        _without_prefix(name): value
        for name, value in (versions if isinstance(versions, dict) else {}).items()
        if isinstance(name, str) and isinstance(value, dict)
        if isinstance(value.get('version'), (int, type(None)))
    }
    return plain


def _without_prefix(name: str) -> str:
    return re.sub(r'^module(\.|$)', '', name)


def classes_of(checkpoint: Any) -> tuple[str, ...] | None:
    """Class names stored in a checkpoint's meta by MMEngine (or MMDetection 2.x), or ``None``."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict):
        return None
    return class_names(meta.get('dataset_meta')) or class_names(meta)


class Fit(NamedTuple):
    """What a state dict did for a model; ``num_batches_tracked`` is left out of account.

    Attributes:
        matched: names of the model's entries that were filled.
        missing: names of those that the file lacks.
        misshapen: names of those that are in the file, but cannot be copied, each with the reason.
        extra: names in the file that the model has no entry for.
    """

    matched: list[str]
    missing: list[str]
    misshapen: dict[str, str]
    extra: list[str]


def fill(model: nn.Module, state: dict) -> Fit:
    """Copies all of a state dict, as :func:`state_dict_of` gives it, that fits into a model.

    Conversions of old names are seen in ``state`` afterwards.
    """
    wanted = {k: v for k, v in model.state_dict().items() if _counts(k) and torch.is_tensor(v)}
    misshapen = {}
    for name in wanted.keys() & state.keys():
        if reason := _misfit(name, state[name], wanted[name]):
            misshapen[name] = reason
            del state[name]
    errors: list[str] = []
    _copy_fitting(model, state, errors)
    missing = []
    for name, own in wanted.items():
        if name in state:  # modules may have converted other names to this one
            reason = _misfit(name, state[name], own)
            reason = reason or next((e for e in errors if f'"{name}"' in e or f' {name}:' in e), '')
            if reason:
                misshapen[name] = reason
        elif name not in misshapen:
            missing.append(name)
    matched = [name for name in wanted if name in state and name not in misshapen]
    extra = [name for name in state if name not in wanted and _counts(name)]
    ordered = {name: misshapen[name] for name in wanted if name in misshapen}
    return Fit(matched, missing, ordered, extra)


def _counts(name: str) -> bool:
    return not name.endswith('num_batches_tracked')


def _misfit(name: str, value: Any, own: Tensor) -> str:
    """Why an entry of a file cannot be the model's; empty if it can."""
    if not torch.is_tensor(value):
        return f'{name} is {str(value)[:40]!r} ({type(value).__name__}), which is no tensor'
    kinds = dict(sparse=value.layout != torch.strided, quantized=value.is_quantized)
    kinds.update(meta=value.is_meta, nested=value.is_nested)
    for kind, so in kinds.items():
        if so:
            return f'{name} is a {kind} tensor in the file'
    if value.shape != own.shape:
        return f'{name} is {tuple(value.shape)} in the file, {tuple(own.shape)} in the model'
    if _family(value.dtype) != _family(own.dtype):
        return f'{name} is {value.dtype} in the file, {own.dtype} in the model'
    return ''


def _family(dtype: torch.dtype) -> str:
    """Types within a family are converted by copying; others would lose what they mean."""
    if dtype == torch.bool:
        return 'bool'
    return 'complex' if dtype.is_complex else 'float' if dtype.is_floating_point else 'int'


def load_all(model: nn.Module, state: dict, path: str, allow_partial: bool) -> None:
    """Loads a result of :func:`state_dict_of`; every parameter and buffer of ``model`` must be in
    it, and nothing else. With ``allow_partial`` that is only a warning.

    Raises:
        CheckpointError: listing what is missing, misshapen or too much, or is no finite number.
    """
    file = f'teacher.checkpoint={path!r}'
    first = next(iter(state))
    fit = fill(model, state)
    total = len(fit.matched) + len(fit.missing) + len(fit.misshapen)
    if len(fit.missing) == total:
        raise CheckpointError(
            f'{file} is of another model: none of its keys (first: {first!r}) belongs to the '
            f'teacher (first: {next(iter(fit.missing), None)!r}). Check the pair of config and '
            'checkpoint; a prefix in front of the names means that a wrapper saved the file.',
            filled=0,
            of=total,
            first_of_file=first,
            first_of_model=next(iter(fit.missing), None),
        )
    if fit.misshapen and not allow_partial:
        raise CheckpointError(
            f'{file} does not fit teacher.config: {few(list(fit.misshapen.values()))}. Number of '
            'classes, depth, width or type of numbers differ; use the config that this checkpoint '
            'was trained with.',
            misshapen=len(fit.misshapen),
            of=total,
            first=next(iter(fit.misshapen.values())),
        )
    if fit.missing and not allow_partial:
        raise CheckpointError(
            f'{file} lacks {len(fit.missing)} of {total} entries of the teacher: '
            f'{few(fit.missing)}. Use the matching config, or allow_partial=True to go on with '
            'random values there.',
            missing=len(fit.missing),
            of=total,
            first=fit.missing[0],
        )
    # A deeper network's file fills a shallower one completely; other parts (ema_...) do no harm.
    extra = extra_in_own_parts(fit)
    if extra and not allow_partial:
        raise CheckpointError(
            f'{file} has {len(extra)} entries that the teacher lacks: {few(extra)}. It was trained '
            'with another config, a deeper one perhaps; use that one, or allow_partial=True to '
            'leave these entries out.',
            extra=len(extra),
            of=total,
            first=extra[0],
        )
    if fit.missing or fit.misshapen or extra:
        print_log(
            f'allow_partial=True: the teacher keeps random values in {len(fit.missing)} missing '
            f'and {len(fit.misshapen)} misshapen entries: '
            f'{few([*fit.missing, *fit.misshapen.values()])}; {len(extra)} entries of the file '
            f'are left out: {few(extra)}',
            'current',
            logging.WARNING,
        )
    if bad := bad_numbers(model, fit.matched):
        raise CheckpointError(
            f'{file} holds numbers that no trained network has: {few(bad)}. The run that saved it '
            'had diverged; use an earlier checkpoint.',
            not_finite=len(bad),
            first=bad[0],
        )


def extra_in_own_parts(fit: Fit) -> list[str]:
    """Entries of the file for a part (``backbone``) that the model has, but has otherwise."""
    parts = {name.split('.')[0] for name in (*fit.matched, *fit.missing, *fit.misshapen)}
    return [name for name in fit.extra if name.split('.')[0] in parts]


def bad_numbers(model: nn.Module, names: list[str]) -> list[str]:
    """Which entries of a model cannot be the result of a training, and why.

    NaN is wrong anywhere. Inf is wrong in parameters and running statistics; masks may hold it.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    values, found = model.state_dict(), []
    for name in names:
        value = values[name]
        if not (value.is_floating_point() or value.is_complex()):
            continue
        statistic = name.endswith(('running_mean', 'running_var'))
        right = value.isfinite() if name in parameters or statistic else ~value.isnan()
        wrong = value.numel() - int(right.sum())
        if wrong:
            found.append(f'{name} has {wrong} of {value.numel()} values NaN or Inf')
        elif name.endswith('running_var') and bool((value < 0).any()):
            found.append(f'{name} has a negative variance')
    return found


def _copy_fitting(module: nn.Module, state: Any, errors: list[str], prefix: str = '') -> None:
    """Copies the entries of right name and shape into ``module``.

    Unlike ``load_state_dict`` it shows every module the whole ``state``, in which modules rename
    what their older versions called otherwise (deformable convolutions, anchor-free heads).
    """
    version = state._metadata.get(prefix[:-1], {})
    module._load_from_state_dict(state, prefix, version, False, [], [], errors)
    for name, child in module._modules.items():
        if child is not None:
            _copy_fitting(child, state, errors, f'{prefix}{name}.')
