"""Objects of all images of a set, labelled or detected, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Objects:
    """M objects, image by image, in the order in which they were found or labelled.

    Attributes:
        image: (M,) position of the image in the set.
        label: (M,) class number.
        box: (M, 4) left, top, width, height in pixels of the original image.
        score: (M,), 1 for labelled objects.
        crowd: (M,) a region of many; a detection in it counts neither as right nor as wrong.
        area: (M,) in pixels, as the annotations or the masks say.
        mask: run-length codes of ``pycocotools.mask``, one for each object; None without masks.
        mask_score: (M,) score of the mask where that is another one.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    mask: list[dict[str, Any]] | None = None
    mask_score: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image)

    def of_masks(self) -> Objects:
        """The same objects as their masks say: area and score are the masks'."""
        from pycocotools import mask as codec

        assert self.mask is not None  # asked for only where the evaluator measures masks
        area = codec.area(self.mask) if self.mask else np.zeros(0)
        score = self.score if self.mask_score is None else self.mask_score
        return replace(self, area=np.asarray(area, np.float64), score=score)

    def chosen(self, index: np.ndarray) -> Objects:
        """Some of the objects, by their positions."""
        values: dict[str, Any] = {}
        for entry in fields(Objects):
            value = getattr(self, entry.name)
            if isinstance(value, list):
                value = [value[i] for i in index]
            values[entry.name] = None if value is None else value
            if isinstance(value, np.ndarray):
                values[entry.name] = value[index]
        return Objects(**values)

    def per_image(self, images: int) -> list[np.ndarray]:
        """Positions of the objects of each image."""
        ends = np.searchsorted(self.image, np.arange(images + 1))
        return [np.arange(a, b) for a, b in pairwise(ends)]


def joined(parts: list[Objects]) -> Objects:
    """The objects of several images, given image by image."""
    if not parts:
        none, no_box = np.zeros(0), np.zeros((0, 4))
        whole = none.astype(np.int64)
        return Objects(whole, whole, no_box, none, none.astype(bool), none)

    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            return None
        return list(chain(*values)) if name == 'mask' else np.concatenate(values)

    return Objects(**{field.name: join(field.name) for field in fields(Objects)})


def overlaps(found: Any, truth: Any, crowd: Any) -> np.ndarray:
    """IoU of two lists of boxes or of masks, (found, truth); by COCO's rule where a crowd is."""
    from pycocotools import mask as codec

    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    return np.asarray(codec.iou(found, truth, [int(one) for one in crowd]))
