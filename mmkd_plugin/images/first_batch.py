"""A small batch of a training set, taken so that nobody notices.

Neither the loader nor its sampler is asked: their iterators, their workers and the order of the
data are those of a run without distillation. The data set is copied, because transforms may keep
images for later, and every random state is put back.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import ProbeError, in_short
from ..rng import rng_kept

IMAGES = 2  # mixup and its kin want a second one
_MANY = 1000  # entries; a container of more is an index, which nobody changes
KEY = 'train_dataloader'


def first_batch(data: Any) -> Any:
    """The first images of a training set, collated as its loader does.

    Args:
        data: the loader, or a data set that was built. Every process gets the same images.

    Returns:
        The batch before the data preprocessor; None of a config, and of a set that is iterated or
        (the log says so) cannot be copied.

    Raises:
        ProbeError: if there is nothing in it, or it cannot give its first images.
    """
    loader = data if isinstance(data, DataLoader) else None
    dataset = data if loader is None else loader.dataset
    known = hasattr(dataset, '__getitem__') and hasattr(dataset, '__len__')
    if not known or isinstance(dataset, (dict, str)):
        return None
    _refuse_nothing(dataset, loader)
    with rng_kept():
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed accelerators, too
        own = _copied(dataset)
        if own is None:
            told = f'{KEY}.dataset ({type(dataset).__name__}) cannot be copied, so shapes are'
            print_log(f'{told} measured on a made-up image, not on its first ones.', 'current')
            return None
        try:
            indices = _indices(dataset, loader)
            whole = getattr(own, '__getitems__', None)
            items = [own[i] for i in indices] if whole is None else whole(indices)
            if loader is not None:
                return loader.collate_fn(items)
            # A set in memory (ArrayDataset) gives whole batches, which are collated already.
            return pseudo_collate(items) if isinstance(items, (list, tuple)) else items
        except Exception as error:
            raise ProbeError(
                f'{KEY}.dataset ({type(dataset).__name__}) could not give its first images, on '
                f'which shapes are measured: {in_short(error)}. Mend the data set or '
                'its pipeline; probe_size=(height, width) measures on a made-up image instead.'
            ) from error


def _refuse_nothing(dataset: Any, loader: DataLoader | None) -> None:
    kind, count = type(dataset).__name__, len(dataset)
    if count == 0:
        raise ProbeError(
            f'{KEY} yields nothing: its data set ({kind}) is empty. Look at ann_file, data_prefix, '
            f'metainfo and filter_cfg of {KEY}.dataset.'
        )
    if loader is not None and loader.batch_sampler is not None and len(loader) == 0:
        raise ProbeError(
            f'{KEY} yields nothing: its data set ({kind}) has {count} items, fewer than a batch '
            f'(batch_size={loader.batch_size}, drop_last={loader.drop_last}) takes. Lower '
            f'{KEY}.batch_size or set drop_last=False.'
        )


def _indices(dataset: Any, loader: DataLoader | None) -> list:
    """What to ask the data set for: the first items, in the sampler's words if it has its own."""
    sampler: Any = None if loader is None else loader.sampler
    if hasattr(sampler, 'source_ratio'):  # each batch mixes the sets that are joined in this one
        return [0, *dataset.cumulative_sizes[:-1]]
    count = IMAGES if loader is None or loader.batch_size is None else loader.batch_size
    count = min(IMAGES, count, len(dataset))
    try:  # a sampler of videos says (video, frame)
        first = next(iter(copy.deepcopy(sampler, {id(dataset): dataset})))
    except Exception:  # none, or one whose place in an endless sequence cannot be copied
        first = 0
    return [first] * count if isinstance(first, (tuple, list)) else list(range(count))


def _copied(dataset: Any) -> Any:
    """A copy whose transforms and counters are its own, and whose data are shared.

    None if it cannot be copied.
    """
    shared = {
        id(value): value
        for part in _parts(dataset)
        for value in vars(part).values()
        if isinstance(value, (np.ndarray, Tensor, bytes))
        or (isinstance(value, (list, tuple, dict)) and len(value) > _MANY)
    }
    try:
        return copy.deepcopy(dataset, shared)
    except Exception:  # an open file, say
        return None


def _parts(dataset: Any) -> Iterator[Any]:
    """A data set, and those that it wraps."""
    if not hasattr(dataset, '__dict__'):
        return
    yield dataset
    inside = getattr(dataset, 'datasets', None)
    for each in inside if isinstance(inside, (list, tuple)) else [getattr(dataset, 'dataset', 0)]:
        yield from _parts(each)
