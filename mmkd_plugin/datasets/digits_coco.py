"""MMDetection's view of the digits set."""

from __future__ import annotations

from mmdet.datasets import CocoDataset

from .digits import CLASSES, PALETTE, ensure_digits
from .digits_scene import SPLITS


class DigitsCocoDataset(CocoDataset):
    """MMDetection's ``CocoDataset`` over the digits set, which is made on first use.

    The runner builds data sets before evaluators, so ``CocoMetric`` may name the annotation file.

    Args:
        split: 'train' or 'val'; sets the default of ``ann_file`` and ``data_prefix``.
        data_root: Folder of the set. Relative to the working directory.
        digits: Settings that differ from :class:`~mmkd_plugin.datasets.DigitsSpec`'s defaults;
            a set of other settings in ``data_root`` is refused. None: any set there will do.
        ann_file: As in ``CocoDataset``. Default: ``annotations/<split>.json``.
        data_prefix: As in ``CocoDataset``. Default: the split's images and semantic maps.
        **kwargs: Passed to ``CocoDataset``.
    """

    METAINFO = {'classes': CLASSES, 'palette': list(PALETTE)}

    def __init__(
        self,
        *args,
        split: str = 'train',
        data_root: str = 'data/digits',
        digits: dict | None = None,
        ann_file: str = '',
        data_prefix: dict | None = None,
        **kwargs,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(
                f"DigitsCocoDataset has 'split' = {split!r}; expected one of {list(SPLITS)}."
            )
        ensure_digits(data_root, digits)
        super().__init__(
            *args,
            data_root=data_root,
            ann_file=ann_file or f'annotations/{split}.json',
            data_prefix=data_prefix or dict(img=f'{split}/', seg=f'semantic/{split}/'),
            **kwargs,
        )
