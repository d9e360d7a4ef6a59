"""What stands between a data set and the model: collate functions and the workers' seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS

from ..registry import FUNCTIONS


def _register(function: Callable) -> Callable:
    # MMEngine looks collate_fn and worker_init_fn up in its own registry, whatever the config's
    # default_scope is: without the second entry they would need the prefix 'mmkd_plugin.'.
    FUNCTIONS.register_module(module=function)
    if function.__name__ not in ROOT_FUNCTIONS.module_dict:
        ROOT_FUNCTIONS.register_module(module=function)
    return function


@_register
def whole_batch(batch: dict | Sequence[dict]) -> dict:
    """Collate function of the in-memory sets, which index whole batches at once.

    Args:
        batch: what the set's ``__getitems__`` made, which is returned as it is; or, where a
            wrapper around the set has hidden that method, a list of single items.

    Returns:
        ``dict(inputs=uint8 (N, 3, H, W), data_samples=dict(gt_label=(N,), index=(N,)))``.
    """
    return batch if isinstance(batch, dict) else stack_batch(batch)


@_register
def stack_batch(items: Sequence[dict]) -> dict:
    """Collate function of the on-disk sets: stacks single items to one dict per batch.

    Args:
        items: ``dict(inputs=uint8 (3, H, W), data_samples=dict(gt_label=..., index=...))``, with or
            without ``teacher_inputs``.

    Returns:
        ``dict(inputs=uint8 (N, 3, H, W), data_samples=dict(gt_label=(N,), index=(N,)))`` and
        ``teacher_inputs`` where the items have it.

    Raises:
        ValueError: if the images are not uint8 tensors of one size.
    """
    batch: dict[str, Any] = {key: _stack([item[key] for item in items], key)
             for key in ('inputs', 'teacher_inputs') if key in items[0]}  # fmt: skip
    samples = [item['data_samples'] for item in items]
    batch['data_samples'] = {
        key: torch.as_tensor([int(sample[key]) for sample in samples]) for key in samples[0]
    }
    return batch


def _stack(images: list, key: str) -> torch.Tensor:
    for image in images:
        if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8:
            found = getattr(image, 'dtype', type(image).__name__)
            raise ValueError(
                f'{key} must be uint8 tensors (3, H, W), but one is {found}. Leave conversion to '
                'float and normalising to the data preprocessor, which does them on the device.'
            )
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f'{key} of one batch have different shapes: {", ".join(map(str, shapes[:4]))}. End the '
            'transforms with one that fixes the size, such as RandomResizedCrop, or Resize '
            'followed by CenterCrop.'
        )
    return torch.stack(images)


@_register
def epoch_worker_seed(worker_id: int, **_: Any) -> None:  # noqa: ARG001  # the loader gives it
    """Seeds a worker process differently in every epoch (``worker_init_fn``).

    MMEngine's own function seeds with ``seed + worker_id`` whenever workers start, so that with
    ``persistent_workers=False`` each epoch repeats the random crops of the first. Here the seed is
    PyTorch's: the loader draws it from the main process's generator when an epoch begins. With
    ``StepSeedHook`` it is a function of the epoch, so that a resumed run repeats it exactly. (With
    ``persistent_workers=True`` the workers' generators just run on, which no resume can repeat.)
    """
    # The main processes of a distributed run may share one seed; forked workers know their rank.
    seed = torch.initial_seed() + 0x9E3779B97F4A7C15 * get_rank()
    torch.manual_seed(seed & (2**63 - 1))
    random.seed(seed)
    np.random.seed(seed & (2**32 - 1))
