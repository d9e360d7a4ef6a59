"""Classification heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from mmkd_plugin.functional.checks import check_choice, check_number, widen

from ..checks import nearest
from ..functional.compiling import is_compiling
from ..registry import MODELS

MUST_CARRY = (
    'a batch must carry data_samples=dict(gt_label=int64 tensor (N,)), or one sample per image '
    'with a gt_label'
)
INITS = ('default', 'zero_bias', 'normal', 'zero')


@MODELS.register_module()
class LinearHead(nn.Module):
    r"""Global mean of the last map, then one linear layer ``fc``; trained with cross-entropy.

    .. math:: L = \lambda\, \mathrm{CE}(z, y) + (1 - \lambda)\, \mathrm{CE}(z, y_\text{mixed})

    with :math:`\lambda = 1` unless the images of the batch are mixed.

    Args:
        num_classes: :math:`C`.
        in_channels: of the last map; an ``ImageClassifier`` takes it from its backbone.
        init: of the linear layer: ``'default'`` is PyTorch's, ``'zero_bias'`` the same with bias 0,
            ``'normal'`` draws the weight from N(0, 0.01) with bias 0, ``'zero'`` starts from zero
            logits. An ``ImageClassifier`` takes what its backbone is published with (its
            ``head_init``) where the config says nothing.
        label_smoothing: share of the uniform distribution in the labels, 0 to below 1.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int | None = None,
        init: str = 'default',
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if in_channels is None:
            raise ValueError(
                'LinearHead needs in_channels, the channels of the last map; inside an '
                'ImageClassifier it is taken from backbone.out_channels.'
            )
        for name, value in (('num_classes', num_classes), ('in_channels', in_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} of LinearHead is 1, 2, 3, ..., got {value!r}.')
        check_choice('init', init, INITS)
        check_number('label_smoothing', label_smoothing, 0, 1)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.fc = nn.Linear(in_channels, num_classes)
        if init in ('normal', 'zero'):
            nn.init.normal_(self.fc.weight, std=0.01 if init == 'normal' else 0.0)
        if init != 'default':
            nn.init.zeros_(self.fc.bias)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Logits (N, C) of the last of ``feats``: a map (N, D, H, W), or vectors (N, D)."""
        x = feats[-1]
        if x.dim() == 4:
            x = x.mean((2, 3))
        return self.fc(x)

    def loss(self, logits: Tensor, data_samples: dict | Sequence | None) -> dict[str, Tensor]:
        """``dict(loss_cls=...)``: cross-entropy, averaged over the batch.

        Args:
            logits: (N, C).
            data_samples: ``gt_label`` (N,) and, if the images are mixed, ``mixed_label`` (N,) and
                ``mixed_lam``, the share of ``gt_label``.

        Raises:
            ValueError: no labels, another number of them, or (seen on the CPU only, because
                looking at them would stall an accelerator) a label that is no class.
        """
        samples = as_batch(data_samples)
        loss = self._cross_entropy(logits, samples, 'gt_label')
        if 'mixed_label' in samples:
            lam = samples['mixed_lam']
            mixed = self._cross_entropy(logits, samples, 'mixed_label')
            loss = lam * loss + (1 - lam) * mixed
        return dict(loss_cls=loss)

    def _cross_entropy(self, logits: Tensor, samples: dict, key: str) -> Tensor:
        if samples.get(key) is None:
            keys = list(samples)
            hint = f' ({nearest(key, keys)})' if keys else ''
            raise ValueError(f'The batch has no {key!r}{hint}: {MUST_CARRY}.')
        labels = samples[key].to(logits.device)
        if labels.shape != logits.shape[:1]:
            raise ValueError(
                f'{key} must be of shape ({logits.shape[0]},) like the batch, '
                f'got {tuple(labels.shape)}.'
            )
        if labels.device.type == 'cpu' and not is_compiling():
            self._check_range(labels, key)
        return nnf.cross_entropy(widen(logits), labels, label_smoothing=self.label_smoothing)

    def _check_range(self, labels: Tensor, key: str) -> None:
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.numel():
            raise ValueError(
                f'{key} has the value {wrong[0].item()}, but the head has '
                f'num_classes={self.num_classes}: labels are 0 to {self.num_classes - 1}.'
            )


def as_batch(data_samples: dict | Sequence | None) -> dict:
    """Labels of a batch as one dict, also where they come as one sample per image."""
    if data_samples is None:
        raise ValueError(f'The batch has no data_samples: {MUST_CARRY}.')
    if isinstance(data_samples, dict):
        return data_samples
    labels = [getattr(sample, 'gt_label', None) for sample in data_samples]
    if any(label is None for label in labels):
        return {}
    return dict(gt_label=torch.cat([torch.as_tensor(label).reshape(-1) for label in labels]))
