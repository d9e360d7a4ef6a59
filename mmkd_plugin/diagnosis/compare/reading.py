"""Reads what models of each task predict, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import CompareError
from .objects import Objects, joined
from .predictions import Predictions

IGNORED = 255  # the label of pixels that no metric counts, unless the metric says another


class Reader:
    """Collects the samples of one run.

    Args:
        ignored: label of the pixels that do not count.
    """

    def __init__(self, ignored: int = IGNORED) -> None:
        self.ignored = ignored
        self.task: str | None = None
        self.names: list[str] = []
        self.paths: list[str] = []
        self.ids: list[Any] = []
        self._read: dict[str, list] = {key: [] for key in _PARTS}

    def add(self, samples: Sequence[dict], classes: int) -> None:
        """Takes the samples of a batch: one for each image, or one for all of them."""
        for sample in samples:
            if self.task is None:
                self.task = _task_of(sample)
            score = sample.get('pred_score') if self.task == 'classification' else None
            if score is not None and torch.as_tensor(score).ndim == 2:
                for row, label in zip(score, torch.as_tensor(sample['gt_label']).reshape(-1)):
                    self._one(dict(pred_score=row, gt_label=label), classes)
            else:
                self._one(sample, classes)

    def _one(self, sample: dict, classes: int) -> None:
        index = len(self.names)
        path = sample.get('img_path') or ''
        self.paths.append(str(path) if isinstance(path, (str, Path)) else '')
        self.names.append(Path(self.paths[-1]).name or str(index))
        self.ids.append(sample.get('img_id', sample.get('sample_idx', index)))
        if self.task == 'detection':
            self._read['found'].append(_objects(sample['pred_instances'], index))
            _check_classes(int(self._read['found'][-1].label.max(initial=-1)) + 1, classes)
            truth = _truth(sample, index)
            if truth is not None:
                self._read['truth'].append(truth)
        elif self.task == 'segmentation':
            told, label = (_map(sample[key]) for key in ('pred_sem_seg', 'gt_sem_seg'))
            self._read['areas'].append(_areas(told, label, classes, self.ignored))
            self._read['maps'].append(_png(told))
            self._read['truth_maps'].append(_png(label))
        elif self.task == 'classification':
            self._read['scores'].append(_numbers(torch.as_tensor(sample['pred_score'])))
            _check_classes(len(self._read['scores'][-1]), classes)
            self._read['labels'].append(int(torch.as_tensor(sample['gt_label']).reshape(-1)[0]))

    def predictions(self, metrics: dict[str, float], classes: Sequence[str]) -> Predictions:
        """What was read, with what the evaluator gave; classes without a name have numbers."""
        read = self._read
        classes = classes or [str(number) for number in range(self._classes())]
        found = Predictions(
            self.task or 'other', metrics, tuple(classes), self.names, self.paths, self.ids,
            maps=read['maps'], truth_maps=read['truth_maps'],
        )  # fmt: skip
        if self.task == 'detection':
            found.found = joined(read['found'])
            if len(read['truth']) == len(self.names):
                found.truth = joined(read['truth'])
        elif self.task == 'segmentation':
            found.areas = np.stack(read['areas'])
        elif self.task == 'classification':
            found.scores = np.stack(read['scores'])
            found.labels = np.asarray(read['labels'])
        return found

    def _classes(self) -> int:
        """The number of classes that occur, where the data set does not tell it."""
        scores = [len(row) for row in self._read['scores'][:1]]
        parts = (*self._read['found'], *self._read['truth'])
        return max([*scores, *(int(part.label.max(initial=-1)) + 1 for part in parts)], default=0)


_PARTS = ('found', 'truth', 'areas', 'maps', 'truth_maps', 'scores', 'labels')


def _task_of(sample: dict) -> str:
    if 'pred_panoptic_seg' in sample:
        return 'other'
    found = sample.get('pred_instances')
    if found is not None and all(key in found for key in ('bboxes', 'labels', 'scores')):
        return 'detection'
    if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
        return 'segmentation'
    score, label = sample.get('pred_score'), sample.get('gt_label')
    if score is not None and label is not None:
        rows = 1 if torch.as_tensor(score).ndim == 1 else len(score)
        if torch.as_tensor(label).numel() == rows:  # of several labels an image, it is another task
            return 'classification'
    return 'other'


def _check_classes(told: int, classes: int) -> None:
    if 0 < classes < told:
        raise CompareError(
            f'The model predicts another number of classes than its data set has: at least {told}, '
            f'not {classes}. Let num_classes of the head and metainfo.classes of val_dataloader in '
            'the config of the work dir belong together.'
        )


# -- detection ------------------------------------------------------------------------------------


def _objects(found: Any, index: int) -> Objects:
    """Detected objects of one image."""
    box = _boxes(found['bboxes'])
    score = _numbers(found['scores']).astype(np.float64)
    mask = _codes(found['masks']) if 'masks' in found else None
    own = found.get('mask_scores')
    return Objects(
        np.full(len(box), index),
        np.asarray(found['labels'].cpu(), np.int64),
        box,
        score,
        np.zeros(len(box), bool),
        box[:, 2] * box[:, 3],
        mask,
        None if own is None else _numbers(own).astype(np.float64),
    )


def _numbers(values: torch.Tensor) -> np.ndarray:
    """Of any device and any float type, some of which NumPy does not know."""
    return values.detach().float().cpu().numpy()


def _boxes(boxes: Any) -> np.ndarray:
    """(M, 4) left, top, width, height of corners, which mmdet may have wrapped."""
    corners = _numbers(getattr(boxes, 'tensor', boxes)).astype(np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _codes(masks: Any) -> list[dict[str, Any]]:
    """Run-length codes of masks, which may be codes already."""
    from pycocotools import mask as codec

    if isinstance(masks, (list, tuple)):
        return list(masks)
    if hasattr(masks, 'to_ndarray'):  # of mmdet, with labels
        masks = masks.to_ndarray()
    masks = np.asarray(torch.as_tensor(masks).cpu(), np.uint8)
    return [codec.encode(np.asfortranarray(mask)) for mask in masks]


def _truth(sample: dict, index: int) -> Objects | None:
    """Labelled objects of one image, where the pipeline has loaded them.

    Pipelines of MMDetection load them after resizing, so that they lie in the original image.
    """
    parts = []
    for key, crowd in (('gt_instances', False), ('ignored_instances', True)):
        own = sample.get(key)
        if own is None or 'bboxes' not in own:
            if not crowd:
                return None
            continue
        box = _boxes(own['bboxes'])
        count = len(box)
        parts.append(
            Objects(
                np.full(count, index),
                np.asarray(own['labels'].cpu(), np.int64),
                box,
                np.ones(count),
                np.full(count, crowd),
                box[:, 2] * box[:, 3],
            )
        )
    return joined(parts)


def truth_of_coco(api: Any, category_ids: Sequence[int], ids: Sequence[Any]) -> Objects:
    """Labelled objects as an annotation file of COCO has them.

    Args:
        api: ``pycocotools.coco.COCO`` of the file.
        category_ids: the id of each class.
        ids: of the images.

    Raises:
        CompareError: an image that the file does not know.
    """
    label_of = {number: label for label, number in enumerate(category_ids)}
    rows, masks, with_masks = [], [], True
    for index, image in enumerate(ids):
        if image not in api.imgs:
            raise CompareError(
                f'The evaluator has an annotation file without the image {image!r} of the '
                'validation set: let val_evaluator.ann_file name the file of val_dataloader.'
            )
        for entry in api.loadAnns(api.getAnnIds(imgIds=[image])):
            if entry['category_id'] not in label_of:
                continue
            crowd = bool(entry.get('iscrowd', 0))
            area = entry.get('area', entry['bbox'][2] * entry['bbox'][3])
            rows.append([index, label_of[entry['category_id']], *entry['bbox'], crowd, area])
            with_masks = with_masks and bool(entry.get('segmentation'))
            masks.append(api.annToRLE(entry) if with_masks else {})
    table = np.asarray(rows, np.float64).reshape(-1, 8)
    return Objects(
        table[:, 0].astype(np.int64),
        table[:, 1].astype(np.int64),
        table[:, 2:6],
        np.ones(len(table)),
        table[:, 6].astype(bool),
        table[:, 7],
        masks if with_masks else None,
    )


# -- segmentation ---------------------------------------------------------------------------------


def _map(data: Any) -> np.ndarray:
    data = data['data'] if isinstance(data, dict) or 'data' in data else data
    return np.asarray(torch.as_tensor(data).squeeze().cpu())


def _areas(told: np.ndarray, label: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """(4, classes) pixels: right, union, predicted, labelled."""
    counts = label != ignored
    told, label = told[counts], label[counts]

    def pixels(values: np.ndarray) -> np.ndarray:
        inside = values[(values >= 0) & (values < classes)]
        return np.bincount(inside.astype(np.int64), minlength=classes)

    right, predicted, labelled = pixels(told[told == label]), pixels(told), pixels(label)
    return np.stack([right, predicted + labelled - right, predicted, labelled])


def _png(classes: np.ndarray) -> bytes:
    import cv2

    small = classes.min(initial=0) >= 0 and classes.max(initial=0) < 256
    return cv2.imencode('.png', classes.astype(np.uint8 if small else np.uint16))[1].tobytes()
