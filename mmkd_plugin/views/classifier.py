"""Class logits of an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import nearest
from ..taps import Recorder, TapError
from ..taps.foreign import AnyModule
from .base import LogitView, only_call
from .class_head import read_head
from .keypoints import predicts_keypoints
from .predictions import HeadSpec, Level, Predictions

_ONCE = 'cls_logits', 'classifiers'
_WITHOUT_LABELS = 'Take a loss without labels, such as KDLoss or CKDLoss.'


class ClassifierLogits(LogitView):
    """What ``model.head`` makes of an image: class logits (N, C), before softmax or sigmoid.

    Serves :class:`mmkd_plugin.models.ImageClassifier` and MMPreTrain's classifiers; which of their
    heads, and how, is in docs/classification.md. The activation is that of the head's own loss.
    With ``'features'`` the input (N, D) of its classification layer comes along, with ``'labels'``
    the class indices (N,) of the batch.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        # MMPreTrain mixes here; without it a sample's gt_score is its one-hot label.
        preprocessor = getattr(model, 'data_preprocessor', None)
        self.mixes = bool(getattr(preprocessor, 'batch_augments', None))
        self.needs = tuple(needs)
        self.head = head = read_head(model)
        self.spec = HeadSpec(
            head.label, 'image', head.activation, head.num_classes, feature_dim=head.feature_dim
        )
        if 'labels' in self.needs and self.head.multi_label:
            raise TapError(
                f'the targets of {type(model.head).__name__} are multi-label, an image '
                f'has any number of classes; the loss needs one label per image. {_WITHOUT_LABELS}'
            )
        self.points = [self.head.logits]
        if 'features' in self.needs and self.head.features is not None:
            self.points.append(self.head.features)

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        has_head = isinstance(getattr(model, 'head', None), nn.Module)
        return has_head and hasattr(model, 'backbone') and not predicts_keypoints(model)

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
    ) -> list[Predictions]:
        rows = self._logits(recorder)
        level = Level(rows[:, None, None])
        if 'features' in self.needs:
            level.features = self._features(recorder)[:, None]
        if 'labels' in self.needs and student is None:
            level.labels = self._labels(data_samples, rows)[:, None, None]
        return [Predictions.of(self.spec, [level])]

    def _logits(self, recorder: Recorder) -> Tensor:
        output = only_call(recorder, self.head.logits, *_ONCE)
        if self.head.summed and isinstance(output, (tuple, list)):
            output = sum(output)
        if not isinstance(output, Tensor) or output.shape[1:] != (self.head.num_classes,):
            raise TapError(
                f'{self.head.logits.path!r} ({type(recorder.model.head).__name__}) '
                f'gave {_described(output)}; logits of a classifier are one tensor '
                f'(N, {self.head.num_classes}). Tap the module path of a classification layer '
                'instead, or distil features.'
            )
        return output if self.head.scale == 1 else output * self.head.scale

    def _features(self, recorder: Recorder) -> Tensor:
        assert self.head.features is not None  # or the loss was refused: HeadSpec.feature_dim
        args, kwargs = only_call(recorder, self.head.features, *_ONCE)
        return args[0] if args else next(iter(kwargs.values()))

    def _labels(self, data_samples: Any, logits: Tensor) -> Tensor:
        """Class indices (N,) of a batch: one dict for all of it, or a sample for each image."""
        if data_samples is None:
            raise ValueError(
                'the loss needs labels, but this step brought none: call the '
                'student with data_samples that hold gt_label.'
            )
        if isinstance(data_samples, dict):
            labels = self._of_batch(data_samples)
        else:
            labels = torch.cat([self._of_sample(sample) for sample in data_samples])
        if len(labels) != len(logits):
            raise ValueError(
                f'the batch has {len(labels)} labels, but the student classified {len(logits)} '
                f'images, so labels and images do not belong together. {_WITHOUT_LABELS}'
            )
        return labels.to(logits.device)

    def _of_batch(self, batch: dict) -> Tensor:
        if 'mixed_label' in batch:
            raise self._mixed('mixed_label')
        if 'gt_label' not in batch:
            raise ValueError(
                f"the loss needs labels, but the batch has no 'gt_label' (it has "
                f'{list(batch)}; {nearest("gt_label", batch)}).'
            )
        labels = batch['gt_label']
        if labels.dim() != 1:
            raise self._several(f'gt_label is {tuple(labels.shape)}')
        return labels

    def _of_sample(self, sample: Any) -> Tensor:
        score = getattr(sample, 'gt_score', None)
        if score is not None and (self.mixes or (score.device.type == 'cpu' and score.max() < 1)):
            raise self._mixed('gt_score')
        label = getattr(sample, 'gt_label', None)
        if label is None:
            raise ValueError(
                f'the loss needs labels, but a {type(sample).__name__} of the batch '
                "has no 'gt_label'."
            )
        label = torch.as_tensor(label).reshape(-1)
        if len(label) != 1:
            raise self._several(f'the gt_label of one is {label.tolist()}')
        return label

    def _several(self, seen: str) -> ValueError:
        return ValueError(
            f'the loss needs one label per image, but the targets of this batch are '
            f'multi-label ({seen}). {_WITHOUT_LABELS}'
        )

    def _mixed(self, key: str) -> ValueError:
        return ValueError(
            f'the loss needs one label per image, but the images of this batch are '
            f'mixed (they have a {key}: mixup, CutMix). {_WITHOUT_LABELS} Or switch the mixing off '
            '(data_preprocessor.mixup=0).'
        )


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f'a tensor {tuple(output.shape)}'
    kind = type(output).__name__
    return f'a {kind} of {len(output)}' if isinstance(output, (tuple, list, dict)) else f'a {kind}'
