"""The images on which models are compared: with labels, from the validation set or else another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Subset

from ..images.pipelines import flat, pipelines

MOST_IN_BATCH = 16
SETS = ('val_dataloader', 'train_dataloader')  # in this order
_RESIZING = ('Resize', 'Crop', 'Mosaic', 'MixUp', 'Affine', 'Expand')


@dataclass
class Labelled:
    """Some images of a data set, drawn by a fixed rule.

    Attributes:
        name: key of the loader in the config.
        dataset: all of the set.
        loader: gives the batches.
        count: how many images.
        in_input_frame: whether true boxes are those of the resized image.
    """

    name: str
    dataset: Any
    loader: Any
    count: int
    in_input_frame: bool

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def labelled_sets(
    cfg: Config, count: int, refuse: Callable[[str, Exception], None]
) -> Iterator[Labelled]:
    """The sets of a config that may have labels, the first of them first.

    Args:
        cfg: the config.
        count: at most so many images of a set.
        refuse: told of each set that cannot be built, or whose first image cannot be read. Training
            builds the validation set before its first step, and would stop there.
    """
    for name in SETS:
        entry = cfg.get(name)
        if not isinstance(entry, dict) or entry.get('dataset') is None:
            continue
        try:
            dataset = build_dataset(entry)
            if not len(dataset):
                continue
            dataset[0]
        except Exception as error:
            refuse(name, error)
            continue
        size = len(dataset)
        chosen = np.random.default_rng(0).permutation(size)[:count]
        loader = plain_loader(
            dict(
                dataset=Subset(dataset, sorted(int(i) for i in chosen)),
                batch_size=min(int(entry.get('batch_size') or 1), MOST_IN_BATCH),
                sampler=dict(type='DefaultSampler', shuffle=False),
                **{key: entry[key] for key in ('collate_fn',) if key in entry},
            )
        )
        yield Labelled(name, dataset, loader, len(chosen), labels_move(dataset))


def build_dataset(entry: dict) -> Any:
    """The data set of a loader's config."""
    dataset = copy.deepcopy(entry['dataset'])
    if isinstance(dataset, dict):
        dataset = DATASETS.build(dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return dataset


def plain_loader(entry: dict) -> Any:
    """A loader without worker processes, whose order depends on nothing."""
    entry = {k: v for k, v in copy.copy(dict(entry)).items() if k not in _OF_WORKERS}
    return Runner.build_dataloader(dict(entry, num_workers=0, persistent_workers=False), seed=0)


_OF_WORKERS = ('prefetch_factor', 'pin_memory', 'timeout', 'worker_init_fn', 'num_batch_per_epoch')


def labels_move(dataset: Any) -> bool:
    """Whether a pipeline loads the labels before it changes the size of the image."""
    for steps in pipelines(dataset):
        names = [step.name for step, _ in flat(steps)]
        loads = [i for i, name in enumerate(names) if 'LoadAnnotations' in name]
        resizes = [i for i, name in enumerate(names) if any(part in name for part in _RESIZING)]
        if loads and resizes and loads[0] < resizes[-1]:
            return True
    return False
