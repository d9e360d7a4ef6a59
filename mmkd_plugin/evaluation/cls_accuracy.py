"""Top-k accuracy of a classifier."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from ..registry import METRICS


@METRICS.register_module()
class ClsAccuracy(BaseMetric):
    """Top-k accuracy in percent: ``accuracy/top1``, ``accuracy/top5``.

    What is right stays on the device until the end of the evaluation and is fetched once. The
    images by which a distributed sampler fills up the last round are not counted twice.

    Args:
        topk: one k or several. A k of at least the number of classes gives 100, with a warning.
        collect_device: ``'cpu'`` or ``'gpu'``: how ranks exchange results.
        prefix: of the names, ``'accuracy'`` by default.
        collect_dir: shared folder for ``collect_device='cpu'``.

    Raises:
        ValueError: a bad ``topk``, or predictions without scores or labels.
    """

    default_prefix = 'accuracy'

    def __init__(
        self,
        topk: int | Sequence[int] = (1, 5),
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not topk or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in topk):
            raise ValueError(f'topk must be whole numbers from 1, such as (1, 5), got {topk!r}.')
        self.topk = topk
        self._warned = False

    results: list[Any]  # a tensor of each batch; in `evaluate` a tuple of each image

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Compares predictions with labels.

        Args:
            data_batch: not used.
            data_samples: dicts of a batch each (``pred_score`` (N, C), ``gt_label`` (N,)) or of an
                image each (``pred_score`` (C,), ``gt_label`` one number). Without scores
                ``pred_label`` serves top 1.
        """
        for sample in data_samples:
            label = sample.get('gt_label')
            if label is None:
                raise ValueError(
                    "ClsAccuracy found no 'gt_label' in the predictions. The data set must give "
                    'labels, and the model must hand them on in mode="predict".'
                )
            score = sample.get('pred_score')
            if score is not None:
                score = torch.as_tensor(score)
                label = torch.as_tensor(label, device=score.device).reshape(-1)
                self.results.append(self._hits(score.reshape(len(label), -1), label))
            elif self.topk == (1,) and 'pred_label' in sample:
                predicted = torch.as_tensor(sample['pred_label']).reshape(-1)
                label = torch.as_tensor(label, device=predicted.device).reshape(-1)
                self.results.append((predicted == label)[:, None])
            else:
                raise ValueError(
                    "ClsAccuracy needs 'pred_score' in the predictions (or 'pred_label' with "
                    f'topk=1), found {", ".join(map(repr, sample))}.'
                )

    def evaluate(self, size: int) -> dict:
        """Accuracy over ``size`` images; the one transfer from the device is here."""
        if self.results:
            # One entry per image: that is the unit by which the base class interleaves the ranks
            # and drops the sampler's repetitions.
            self.results = [tuple(row) for row in torch.cat(self.results).cpu().tolist()]
        return super().evaluate(size)

    def compute_metrics(self, results: list) -> dict:
        """Percentages from one tuple of booleans per image."""
        hits = torch.tensor(results, dtype=torch.float64).reshape(-1, len(self.topk))
        percent = hits.mean(0) * 100
        return {f'top{k}': float(value) for k, value in zip(self.topk, percent)}

    def _hits(self, score: Tensor, label: Tensor) -> Tensor:
        """Bool (N, number of k)."""
        classes = score.shape[1]
        if max(self.topk) >= classes and not self._warned:
            self._warned = True
            print_log(
                f'ClsAccuracy: top {max(self.topk)} of {classes} classes is always right; choose a '
                'smaller topk.',
                'current',
                logging.WARNING,
            )
        best = score.topk(min(max(self.topk), classes), dim=1).indices == label[:, None]
        return torch.stack([best[:, :k].any(1) for k in self.topk], dim=1)
