"""Real images without a download: the handwritten digits that scikit-learn carries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as nnf

from ..functional.checks import check_choice
from ..registry import DATASETS
from .arrays import ArrayDataset
from .digits_scene import load_scans

# Of six neighbours in the order "by class, then as in the file".
_RESIDUES = dict(train=(3, 4, 5), val=(2,), test=(0, 1))


@DATASETS.register_module()
class SklearnDigits(ArrayDataset):
    """The 1,797 digits of ``sklearn.datasets.load_digits`` as RGB images, 10 classes.

    The split is a rule, not a random state: images are ordered by class, within a class as in the
    file, and of every six neighbours number 0 and 1 are test, 2 is val, 3 to 5 are train. That
    gives 897 train, 300 val and 600 test images with equal shares of all classes. (The scans do not
    tell who wrote them; the same writers occur in all three.)

    Args:
        split: ``'train'``, ``'val'`` or ``'test'``.
        size: height and width in pixels, bilinearly enlarged; None leaves the scans' 8x8.
        indices: see :class:`ArrayDataset`.
        num_samples: see :class:`ArrayDataset`.

    Raises:
        ValueError: unknown split, bad size.
        ModuleNotFoundError: scikit-learn is not installed.
    """

    def __init__(
        self,
        split: str = 'train',
        size: int | None = None,
        indices: Sequence[int] | None = None,
        num_samples: int | None = None,
    ) -> None:
        check_choice('split', split, _RESIDUES)
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f'size must be a whole number of pixels or None, got {size!r}.')
        scans, labels = load_scans()
        order = np.argsort(labels, kind='stable')
        residue = np.arange(len(labels)) % 6
        chosen = np.sort(order[np.isin(residue, _RESIDUES[split])])
        images = torch.from_numpy(scans[chosen] * 255.0)[:, None]
        if size is not None and size != images.shape[-1]:
            images = nnf.interpolate(images, (size, size), mode='bilinear', align_corners=False)
        images = images.round().to(torch.uint8).expand(-1, 3, -1, -1)
        classes = [str(digit) for digit in range(10)]
        super().__init__(images, labels[chosen], classes, indices, num_samples)
