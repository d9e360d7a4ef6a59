"""Argument checks and the two conventions shared by all functions: precision and reduction."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .compiling import is_compiling

MAPS = '(N, C, H, W)'  # layout of feature maps, in messages
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}{hint}')


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises ValueError unless ``value`` is a finite number with ``low <= value < high``."""
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (good and low <= value < high):
        limit = f'at least {low}' if math.isinf(high) else f'at least {low} and below {high}'
        raise ValueError(f'{name} must be a number of {limit}, got {value!r}.')


def check_inside(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises ValueError unless ``value`` is a finite number with ``low < value < high``."""
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (good and low < value < high):
        limit = f'above {low}' if math.isinf(high) else f'above {low} and below {high}'
        raise ValueError(f'{name} must be a finite number {limit}, got {value!r}.')


def check_temperature(value: object) -> None:
    """Raises ValueError unless ``value`` is a finite number above 0."""
    check_inside('temperature', value, 0)


def check_tensor(name: str, x: object, ndim: int, layout: str) -> None:
    """Raises ValueError unless ``x`` is a float tensor with ``ndim`` dimensions."""
    if not isinstance(x, Tensor):
        raise ValueError(f'{name} must be a tensor of shape {layout}, got a {type(x).__name__}.')
    if x.ndim != ndim:
        raise ValueError(f'{name} must have shape {layout}, got {tuple(x.shape)}.')
    if not x.is_floating_point():
        raise ValueError(f'{name} must be a float tensor, got dtype {x.dtype}.')


def check_pair(student: Tensor, teacher: Tensor, ndim: int, layout: str) -> None:
    """Raises ValueError unless both are float tensors of the same shape."""
    check_tensor('student', student, ndim, layout)
    check_tensor('teacher', teacher, ndim, layout)
    # Number by number: dynamo of torch 2.1 cannot compare whole sizes that it has made dynamic.
    if any(s != t for s, t in zip(student.shape, teacher.shape)):
        raise ValueError(
            f'student and teacher must have the same shape {layout}, '
            f'got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}.'
        )


def check_labels(
    labels: object, num_samples: int, num_classes: int, background: bool = False
) -> None:
    """Raises ValueError unless ``labels`` are ``num_samples`` class indices, one per row.

    Whether they lie in 0 to ``num_classes - 1``, or with ``background`` to ``num_classes``, the
    label of a row without any of the classes, is looked at where that is free: on the CPU and
    outside of ``torch.compile``. An accelerator would have to be waited for; there the assertion of
    ``gather`` on the device speaks.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f'labels must be a tensor of shape (N,), got a {type(labels).__name__}.')
    if labels.dtype not in INTEGERS:
        raise ValueError(f'labels must be integer class indices, got dtype {labels.dtype}.')
    if labels.ndim != 1 or labels.shape[0] != num_samples:
        raise ValueError(
            f'labels must have shape (N,) = ({num_samples},), one class index per row of the '
            f'logits, got {tuple(labels.shape)}.'
        )
    if labels.device.type != 'cpu' or is_compiling() or not labels.numel():
        return
    highest = num_classes if background else num_classes - 1
    for value in (int(labels.min()), int(labels.max())):
        if not 0 <= value <= highest:
            raise ValueError(
                f'labels must lie in 0 to {highest}, for the logits have {num_classes} '
                f'classes, got {value}.'
            )


def widen(x: Tensor) -> Tensor:
    """Casts to float32 unless ``x`` is wider already; a no-op for float32 and float64."""
    # Not torch.promote_types: dynamo of torch 2.1 breaks the graph there.
    return x if x.dtype == torch.float64 else x.float()


def reduce(values: Tensor, reduction: str) -> Tensor:
    """Applies ``reduction``; the mean over nothing (no sample selected) is 0, not NaN."""
    if reduction == 'none':
        return values
    return values.sum() / max(values.numel(), 1)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of the values (N,), weighted by ``weights`` (N,) of at least 0; 0 if nothing counts."""
    if weights is None:
        return reduce(values, 'mean')
    weights = weights.to(values.dtype)
    total = weights.sum()
    # The quotient lies in 0 to 1. Dividing the sum instead could overflow in a scaled backward.
    share = weights / torch.where(total == 0, torch.ones_like(total), total)
    return (values * share).sum()
