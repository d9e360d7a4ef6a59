"""Data sets held in memory as one uint8 array, from which whole batches are cut at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..class_map import class_names


class ArrayDataset(Dataset):
    """Images and labels in memory.

    PyTorch's loader passes all indices of a batch to :meth:`__getitems__`; with
    ``collate_fn=dict(type='whole_batch')`` there is no work per image. Augment in the data
    preprocessor (``ClsDataPreprocessor(batch_augments=[...])``), on the training device.

    Args:
        images: uint8 (N, 3, H, W), RGB.
        labels: N class numbers, 0 .. C-1.
        classes: the C class names.
        indices: keeps only these images, in this order.
        num_samples: keeps only so many, the same number of each class (give or take one), by a
            fixed rule: see :func:`balanced_subset`.

    Raises:
        ValueError: array of another type or shape, labels out of range, bad ``indices`` or
            ``num_samples``.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: Sequence[int] | np.ndarray | Tensor,
        classes: Sequence[str],
        indices: Sequence[int] | None = None,
        num_samples: int | None = None,
    ) -> None:
        images = torch.as_tensor(images)
        labels = torch.as_tensor(labels)
        classes = as_names(classes)
        _check(images, labels, classes)
        chosen = _chosen(labels, indices, num_samples)
        if chosen is not None:
            images, labels = images[chosen], labels[chosen]
        self.images = images.contiguous()
        self.labels = labels.long()
        self.metainfo: dict[str, Any] = dict(classes=tuple(classes))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        """One image: ``inputs`` (3, H, W), ``gt_label`` and ``index`` without dimensions."""
        samples = dict(gt_label=self.labels[index], index=torch.tensor(index % len(self)))
        return dict(inputs=self.images[index], data_samples=samples)

    def __getitems__(self, indices: Sequence[int]) -> dict:
        """A whole batch: ``inputs`` (N, 3, H, W), ``gt_label`` and ``index`` (N,).

        ``index`` counts within this data set, after ``indices`` or ``num_samples``.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        samples = dict(gt_label=self.labels[index], index=index)
        return dict(inputs=self.images.index_select(0, index), data_samples=samples)

    def __repr__(self) -> str:
        size = 'x'.join(map(str, self.images.shape[1:]))
        return f'{type(self).__name__}({len(self)} images {size}, {len(self.classes)} classes)'

    @property
    def classes(self) -> tuple[str, ...]:
        return self.metainfo['classes']


def balanced_subset(labels: Sequence[int] | Tensor, num_samples: int) -> Tensor:
    """Positions of a class-balanced subset, the same on every machine and in every version.

    The first image of every class comes first, then the second of every class, and so on, until
    there are ``num_samples``. A smaller subset is therefore part of every larger one.

    Args:
        labels: (N,) class numbers.
        num_samples: 1 .. N.

    Returns:
        int64 (num_samples,), ascending.
    """
    classes = np.asarray(labels)
    by_class = np.argsort(classes, kind='stable')
    first = np.searchsorted(classes[by_class], classes[by_class])  # where the class begins
    occurrence = np.empty(len(labels), dtype=np.int64)
    occurrence[by_class] = np.arange(len(labels)) - first
    order = np.lexsort((np.arange(len(labels)), classes, occurrence))
    return torch.from_numpy(np.sort(order[:num_samples]))


def as_names(classes: Sequence[str] | np.ndarray | str) -> list[str]:
    """Class names as a list; one string, as in ``('thing')``, is one name.

    Raises:
        ValueError: no names, or one of them twice.
    """
    names = list(class_names(dict(classes=classes)) or ())
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(
            f'classes={names!r} must name each class once'
            + (f'; twice: {twice}.' if twice else '.')
        )
    return names


def check_labels(labels: Tensor, classes: Sequence[str]) -> None:
    """Raises ValueError unless all labels are class numbers, 0 .. C-1."""
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1:
        raise ValueError(
            f'labels must be whole numbers of shape (N,), got {labels.dtype} of shape '
            f'{tuple(labels.shape)}.'
        )
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or high >= len(classes):
        raise ValueError(
            f'Labels must lie in 0..{len(classes) - 1} ({len(classes)} classes), but they go from '
            f'{low} to {high}.'
        )


def _check(images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f'images must be uint8 of shape (N, 3, H, W), got {images.dtype} of shape '
            f'{tuple(images.shape)}.'
        )
    check_labels(labels, classes)
    if len(images) != len(labels):
        raise ValueError(f'There are {len(images)} images, but {len(labels)} labels.')
    if not len(images):
        raise ValueError('The data set is empty.')


def _chosen(
    labels: Tensor, indices: Sequence[int] | None, num_samples: int | None
) -> Tensor | None:
    if indices is not None and num_samples is not None:
        raise ValueError('Give indices or num_samples, not both.')
    if indices is not None:
        chosen = torch.as_tensor(indices)
        if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point():
            raise ValueError(f'indices must be a list of image numbers, got {indices!r}.')
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(labels):
            raise ValueError(
                f'indices must lie in 0..{len(labels) - 1}, but they go from {int(chosen.min())} '
                f'to {int(chosen.max())}.'
            )
        return chosen.long()
    if num_samples is None:
        return None
    whole = isinstance(num_samples, int) and not isinstance(num_samples, bool)
    if not whole or not 1 <= num_samples <= len(labels):
        raise ValueError(
            f'num_samples must be a whole number in 1..{len(labels)}, the images that there are, '
            f'got {num_samples!r}.'
        )
    return balanced_subset(labels, num_samples)
