"""Made-up batches of the kind that a packaged config trains on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from torch.utils.data import Dataset

IMAGE, LENGTH = 128, 2
BOXES = ((8, 8, 72, 64), (40, 24, 120, 112), (4, 70, 60, 124))


def image_size(model: ConfigDict) -> int:
    """The side of images that a model insists on (SSD), else 128."""
    head = model.get('bbox_head') or {}
    prior = head.get('anchor_generator') or {} if isinstance(head, dict) else {}
    return int(prior.get('input_size') or IMAGE)


def num_classes(node: Any) -> int:
    """Classes of the first head that says so, else 80."""
    found = list(_values(node, ('num_classes', 'num_things_classes')))
    return int(found[0]) if found else 80


def _values(node: Any, keys: tuple[str, ...]) -> list[int]:
    if isinstance(node, (list, tuple)):
        return [value for child in node for value in _values(child, keys)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in keys if isinstance(node.get(key), int)]
    heads = [v for k, v in node.items() if not str(k).startswith(('rpn', 'backbone'))]
    return own + [value for child in heads for value in _values(child, keys)]


def seg_scale(config: Config) -> float:
    """How much smaller the pipeline makes maps of stuff classes (HTC), 1 for most."""
    text = str(config.get('train_pipeline', ''))
    return 0.125 if 'SegRescale' in text else 1.0


def dataset_of(config: Config) -> dict[str, Any]:
    """Config of the made-up data set that a packaged config can train on."""
    return dict(
        type='MadeUp',
        size=image_size(config.model),
        classes=num_classes(config.model),
        scale=seg_scale(config),
    )


@DATASETS.register_module()
class MadeUp(Dataset):
    """Images of noise with three objects each: boxes, masks, stuff and proposals.

    Args:
        size: height and width of the images.
        classes: number of classes.
        scale: of the map of stuff classes.
    """

    def __init__(self, size: int, classes: int, scale: float = 1.0) -> None:
        self.metainfo = dict(classes=tuple(f'class {i}' for i in range(classes)))
        self.size, self.classes, self.scale = size, classes, scale

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        image = random.integers(0, 255, (3, self.size, self.size), dtype=np.uint8)
        return dict(inputs=torch.from_numpy(image), data_samples=self._sample(index, random))

    def _sample(self, index: int, random: np.random.Generator) -> DetDataSample:
        size = self.size
        shape = (size, size)
        sample = DetDataSample(
            metainfo=dict(
                img_id=index,
                img_path=f'{index}.jpg',
                img_shape=shape,
                ori_shape=shape,
                scale_factor=(1.0, 1.0),
                flip=False,
            )
        )
        boxes = torch.tensor(BOXES, dtype=torch.float32) * (size / IMAGE)
        labels = torch.arange(len(boxes)) % min(self.classes, 3)
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=labels, masks=BitmapMasks(_masks(boxes, size), size, size)
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        sample.proposals = InstanceData(bboxes=_proposals(boxes, random), scores=torch.rand(24))
        side = int(size * self.scale)
        stuff = torch.from_numpy(random.integers(80, 82, (1, side, side)))
        sample.gt_sem_seg = PixelData(sem_seg=stuff)
        return sample


def _masks(boxes: torch.Tensor, size: int) -> np.ndarray:
    masks = np.zeros((len(boxes), size, size), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    return masks


def _proposals(boxes: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    near = boxes.repeat(8, 1)
    moved = near + torch.from_numpy(random.uniform(-3, 3, tuple(near.shape)).astype(np.float32))
    return moved.clamp(min=0)
