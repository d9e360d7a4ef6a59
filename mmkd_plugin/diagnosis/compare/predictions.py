"""What a run predicts for each image of a set, as arrays that can be kept in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from .objects import Objects

_ARRAY = 'numpy.ndarray'


@dataclass
class Predictions:
    """Predictions of one run for N images and C classes.

    Attributes:
        task: ``'detection'``, ``'segmentation'``, ``'classification'`` or ``'other'``.
        metrics: what the evaluator of the config gave.
        classes: names.
        names: of the images, without folders; the position where an image has no file.
        paths: of the images; empty where there is no file.
        ids: by which the data set calls the images.
        truth: labelled objects, of detection.
        found: detected objects, of detection.
        areas: (N, 4, C) pixels of each class: right, right or wrong (union), predicted, labelled.
        maps: a PNG of the predicted classes of each image, of segmentation.
        truth_maps: the same of the labels.
        scores: (N, C) probabilities, of classification.
        labels: (N,) true classes, of classification.
        results: what each metric of the evaluator keeps of the images, by its position; only of
            metrics whose images count one by one and that this package does not know better.
        meta: what the data set says of itself, as far as it can be kept.
        cost: parameters, flops, seconds of an image and where they were measured.
    """

    task: str
    metrics: dict[str, float]
    classes: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    truth: Objects | None = None
    found: Objects | None = None
    areas: np.ndarray | None = None
    maps: list[bytes] = field(default_factory=list)
    truth_maps: list[bytes] = field(default_factory=list)
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    results: dict[int, list] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return len(self.names)

    def plain(self) -> dict[str, Any]:
        """Tensors, numbers, texts and containers of them, which load without running code.

        Raises:
            TypeError: a metric keeps objects of another kind.
        """
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def of_plain(cls, content: dict[str, Any]) -> Predictions:
        """The reverse of :meth:`plain`."""
        values = _restored(content)
        for key in ('truth', 'found'):
            if values[key] is not None:
                values[key] = Objects(**values[key])
        return cls(**values)


def check_plain(value: Any) -> bool:
    """Whether a value can be kept as :meth:`Predictions.plain` keeps it."""
    try:
        _plain(value)
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):  # told from a tensor when it is read again
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(_plain(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise TypeError(f'{type(value).__name__} is not kept')


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return value[_ARRAY].numpy()
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_restored(item) for item in value)
    return value
