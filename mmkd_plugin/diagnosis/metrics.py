"""Metrics of the config's own evaluator on some of its images."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from numbers import Real
from typing import Any

import numpy as np
from mmengine.evaluator import Evaluator

from .images import Labelled

_EVALUATORS = ('val_evaluator', 'test_evaluator')


class Metrics:
    """Collects answers and evaluates them as ``val_evaluator`` says.

    A metric that cannot look at some of the images only gives nothing; the doctor has its own
    numbers beside it.

    Args:
        cfg: the config.
        images: what is looked at.
    """

    def __init__(self, cfg: Any, images: Labelled) -> None:
        self._count, self._is_empty = images.count, True
        self._ids: list[int] = []
        self._evaluator: Evaluator | None = None
        config = next((cfg[key] for key in _EVALUATORS if cfg.get(key)), None)
        if images.name != 'val_dataloader' or config is None:
            return
        with contextlib.suppress(Exception):
            self._evaluator = Evaluator(copy.deepcopy(config))
            self._evaluator.dataset_meta = getattr(images.dataset, 'metainfo', None)

    def add(self, outputs: Any, batch: Any) -> None:
        """Takes the answers to a batch."""
        if self._evaluator is None:
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._evaluator.process(data_samples=outputs, data_batch=batch)
        except Exception:
            self._evaluator = None
            return
        self._is_empty = False
        self._ids += [x.img_id for x in outputs if hasattr(x, 'img_id')]

    def result(self) -> dict[str, float]:
        """The numbers, by the names of the log; empty where there are none."""
        if self._evaluator is None or self._is_empty:
            return {}
        for metric in self._evaluator.metrics:
            if (
                self._ids and getattr(metric, 'img_ids', False) is None
            ):  # COCO's looks at all of its file
                metric.img_ids = sorted(self._ids)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = self._evaluator.evaluate(self._count)
        except Exception:
            return {}
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, Real | np.number)}
        # COCO's -1 is: no such objects
        return {key: value for key, value in numbers.items() if math.isfinite(value) and value >= 0}
