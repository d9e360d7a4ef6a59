"""Class logits of an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import nearest
from ..taps import Recorder, TapError, TapPoint
from .base import LogitView, register_view
from .predictions import HeadSpec, Level, Predictions


@register_view('cls_logits')
class ClassifierLogits(LogitView):
    """The output of the last linear layer of ``model.head``: logits (N, C), before any softmax.

    Serves :class:`mmkd_plugin.models.ImageClassifier` and MMPreTrain's classifiers. With
    ``'features'`` the input (N, D) of that layer comes along, with ``'labels'`` the class indices
    (N,) of the batch.
    """

    def __init__(self, model: nn.Module, needs: Sequence[str], where: str) -> None:
        self.where = where
        # MMPreTrain mixes here; without it a sample's gt_score is its one-hot label.
        preprocessor = getattr(model, 'data_preprocessor', None)
        self.mixes = bool(getattr(preprocessor, 'batch_augments', None))
        self.needs = tuple(needs)
        path = _classification_layer(model, where)
        self.logits = TapPoint(path)
        self.features = TapPoint(path, source='input')
        self.points = [self.logits]
        if 'features' in self.needs:
            self.points.append(self.features)

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return isinstance(getattr(model, 'head', None), nn.Module) and hasattr(model, 'backbone')

    def specs(self, model: nn.Module) -> list[HeadSpec]:
        layer = model.get_submodule(self.logits.path)
        return [
            HeadSpec(
                label=self.logits.path,
                kind='image',
                activation='softmax',
                num_classes=layer.out_features,
                feature_dim=layer.in_features,
            )
        ]

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
    ) -> list[Predictions]:
        rows = self._single(recorder, self.logits)
        if rows.dim() != 2:
            raise TapError(
                f'{self.where}: {self.logits.path!r} gave {tuple(rows.shape)}; logits of a '
                'classifier are (N, C).'
            )
        level = Level(rows[:, None, None])
        if 'features' in self.needs:
            level.features = self._single(recorder, self.features)[:, None]
        if 'labels' in self.needs and student is None:
            level.labels = self._labels(data_samples, rows)[:, None, None]
        return [
            Predictions(
                label=self.logits.path,
                kind='image',
                levels=[level],
                activation='softmax',
                num_classes=rows.shape[1],
            )
        ]

    def _labels(self, data_samples: Any, logits: Tensor) -> Tensor:
        """Class indices (N,) of a batch: one dict for all of it, or a sample for each image."""
        if data_samples is None:
            raise ValueError(
                f'{self.where}: the loss needs labels, but this step brought none: call the '
                'student with data_samples that hold gt_label.'
            )
        if isinstance(data_samples, dict):
            labels = self._of_batch(data_samples)
        else:
            labels = torch.cat([self._of_sample(sample) for sample in data_samples])
        return labels.to(logits.device)

    def _of_batch(self, batch: dict) -> Tensor:
        if 'mixed_label' in batch:
            raise self._mixed('mixed_label')
        if 'gt_label' not in batch:
            raise ValueError(
                f"{self.where}: the loss needs labels, but the batch has no 'gt_label' (it has "
                f'{list(batch)}; {nearest("gt_label", batch)}).'
            )
        return batch['gt_label']

    def _of_sample(self, sample: Any) -> Tensor:
        score = getattr(sample, 'gt_score', None)
        if score is not None and (self.mixes or (score.device.type == 'cpu' and score.max() < 1)):
            raise self._mixed('gt_score')
        label = getattr(sample, 'gt_label', None)
        if label is None:
            raise ValueError(
                f'{self.where}: the loss needs labels, but a {type(sample).__name__} of the batch '
                "has no 'gt_label'."
            )
        return torch.as_tensor(label).reshape(-1)

    def _mixed(self, key: str) -> ValueError:
        return ValueError(
            f'{self.where}: the loss needs one label per image, but the images of this batch are '
            f'mixed (they have a {key}: mixup, CutMix). Use a loss without labels (KDLoss, '
            'CKDLoss), or switch the mixing off (data_preprocessor.mixup=0).'
        )

    def _single(self, recorder: Recorder, point: TapPoint) -> Tensor:
        captures = recorder.read([point])
        if len(captures) != 1:
            raise TapError(
                f'{self.where}: {point.path!r} was called {len(captures)} times in this step; the '
                "view 'cls_logits' reads classifiers that call it once."
            )
        return captures[0].tensor


def _classification_layer(model: nn.Module, where: str) -> str:
    """Path of the head's last linear layer (of those as wide as ``num_classes``, if it says so)."""
    classes = getattr(model.head, 'num_classes', None)
    linear = {
        f'head.{name}' if name else 'head': module
        for name, module in model.head.named_modules()
        if isinstance(module, nn.Linear)
    }
    fitting = [
        path
        for path, module in linear.items()
        if not isinstance(classes, int) or module.out_features == classes
    ]
    if not fitting:
        raise TapError(
            f"{where}: the view 'cls_logits' looks for a linear layer with num_classes={classes} "
            f'outputs in {type(model.head).__name__}, which has '
            + (', '.join(f'{p} ({m.out_features})' for p, m in linear.items()) or 'none')
            + '. Tap its module path instead (tools/inspect_model.py lists them).'
        )
    return fitting[-1]
