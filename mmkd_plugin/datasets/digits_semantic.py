"""MMSegmentation's view of the digits set: every pixel is background or one of ten digits."""

from __future__ import annotations

from mmseg.datasets import BaseSegDataset

from .digits import CLASSES, PALETTE, ensure_digits
from .digits_scene import SPLITS


class DigitsSegDataset(BaseSegDataset):
    """MMSegmentation's ``BaseSegDataset`` over the digits set, which is made on first use.

    Labels are those of the set's semantic maps: 0 is background, digit + 1 elsewhere.

    Args:
        split: 'train' or 'val'; sets the default of ``data_prefix``.
        data_root: Folder of the set. Relative to the working directory.
        digits: Settings that differ from :class:`~mmkd_plugin.datasets.DigitsSpec`'s defaults;
            a set of other settings in ``data_root`` is refused. None: any set there will do.
        data_prefix: As in ``BaseSegDataset``. Default: the split's images and semantic maps.
        **kwargs: Passed to ``BaseSegDataset``.

    Raises:
        ValueError: no such split.
    """

    METAINFO = {'classes': ('background', *CLASSES), 'palette': [[0, 0, 0], *map(list, PALETTE)]}

    def __init__(
        self,
        split: str = 'train',
        data_root: str = 'data/digits',
        digits: dict | None = None,
        data_prefix: dict | None = None,
        **kwargs,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(
                f"DigitsSegDataset has 'split' = {split!r}; expected one of {list(SPLITS)}."
            )
        ensure_digits(data_root, digits)
        super().__init__(
            img_suffix='.png',
            seg_map_suffix='.png',
            data_root=data_root,
            data_prefix=data_prefix or dict(img_path=split, seg_map_path=f'semantic/{split}'),
            **kwargs,
        )
