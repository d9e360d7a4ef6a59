"""Distillation with inverse propensity weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine import dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmkd_plugin import functional as F
from mmkd_plugin.checks import check_bool
from mmkd_plugin.functional.checks import (
    check_choice,
    check_inside,
    check_number,
    check_temperature,
    weighted_mean,
    widen,
)
from mmkd_plugin.functional.ipw import NORMALIZE, RATIOS, binary_cross_entropy

from ..checks import check_keys
from ..registry import MODELS
from .logit_base import LogitLoss
from .row_base import select_by_kind

BASES = ('kd', 'dkd')


@MODELS.register_module()
class IPWDLoss(LogitLoss):
    r"""Rare answers of the teacher count more: *Respecting Transfer Gap in Knowledge Distillation*
    (2022).

    .. math:: L = \frac{1}{N} \sum_n w_n \, T^2 \,
        \mathrm{KL}\big(\mathrm{softmax}(t_n / T) \,\|\, \mathrm{softmax}(s_n / T)\big), \qquad
        w_n = 1 + \frac{H(\tilde s_n, y_n)}{H(\tilde z_n, y_n)}

    :math:`H` is the cross-entropy with the label, :math:`\tilde{}` the z-score of a row, and
    :math:`z` the output of ``cls_head``, a linear layer on the student's features that is trained
    on the labels alone: its loss is the auxiliary loss ``cls``. It is not part of the student. The
    weights get no gradient.

    On sigmoid logits :math:`H` is the binary cross-entropy with the one-hot label, summed over the
    classes, ``cls_head`` is trained with the same, and KL is the sum of the classes' Bernoulli
    divergences. On detectors it learns from the positives unless the term says otherwise: labels
    say too little about the background.

    Does not couple the samples of a batch, unless ``normalize='batch_mean'``. Needs labels and
    features. Reports ``weight_mean`` and ``weight_max``.

    Args:
        temperature: :math:`T`. Default 4.0, the CIFAR-100 value of plain distillation
            (recommended; the paper's is unverified).
        ratio: ``'kd_over_cls'`` as above (default; the direction is unverified and follows the
            paper's argument), or ``'cls_over_kd'``, its reverse.
        standardize: Compare the two heads by z-scores. Default True: a secondary source calls it
            essential, and without it late weights explode.
        normalize: ``'none'`` (default), or ``'batch_mean'``: weights of mean 1 within a batch, that
            of all processes together; recommended for detectors.
        clip_max: Largest weight after that, or None (default); 5 is recommended for detectors.
        start_epoch: The first epoch (from 0) with weights; they are 1 before. Default 0; the last
            half of training is recommended for self-distillation, as early heads estimate poorly.
        detach_aux: Keep the loss of ``cls_head`` out of the student. Default True (recommended):
            with weights of 1 this loss is then exactly ``KDLoss``.
        aux_weight: Factor of the auxiliary loss. Default 1.0 (recommended).
        base: What is weighted, the loss per sample of ``'kd'`` (default) or of ``'dkd'``.
        dkd: ``dict(alpha=..., beta=...)`` for ``base='dkd'``, where other than 1.0 and 8.0.

    Shape:
        - student, teacher: (N, C), or maps (N, C, H, W) whose every position is a sample.
        - labels: (N,) or (N, H, W)
        - features: (N, D) or (N, D, H, W)
        - priors: (N,) or (N, H, W), where several predictions share their features.
        - output: ()

    Example:
        >>> import torch
        >>> loss = IPWDLoss()
        >>> labels, features = torch.tensor([0, 3]), torch.randn(2, 6)
        >>> value = loss(torch.randn(2, 4), torch.randn(2, 4), labels=labels, features=features)
        >>> value.shape, loss.cls_head.weight.shape, sorted(loss.report), list(loss.auxiliary)
        (torch.Size([]), torch.Size([4, 6]), ['weight_max', 'weight_mean'], ['cls'])
    """

    needs: tuple[str, ...] = ('labels', 'features')
    report_keys = ('weight_mean', 'weight_max')
    auxiliary_keys = ('cls',)
    # Its layer and weights want all rows at once, and a batch has too many pixels for that.
    default_select = select_by_kind(
        dense='positive', roi='positive', query='positive', pixel=dict(by='random', k=4096)
    )

    def __init__(
        self,
        temperature: float = 4.0,
        ratio: str = 'kd_over_cls',
        standardize: bool = True,
        normalize: str = 'none',
        clip_max: float | None = None,
        start_epoch: int = 0,
        detach_aux: bool = True,
        aux_weight: float = 1.0,
        base: str = 'kd',
        dkd: dict | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice('ratio', ratio, RATIOS)
        check_choice('normalize', normalize, NORMALIZE)
        check_choice('base', base, BASES)
        check_bool(standardize, 'standardize')
        check_bool(detach_aux, 'detach_aux')
        check_number('start_epoch', start_epoch, 0)
        check_number('aux_weight', aux_weight, 0)
        if clip_max is not None:
            check_inside('clip_max', clip_max, 0)
        self.temperature = temperature
        self.weighting: dict[str, Any] = dict(
            ratio=ratio, standardize=standardize, normalize=normalize, clip_max=clip_max
        )
        self.start_epoch = start_epoch
        self.detach_aux = detach_aux
        self.aux_weight = aux_weight
        self.base = base
        self.dkd = _dkd_options(base, dkd)
        self.batch_coupled = normalize == 'batch_mean'
        self.started = True  # as long as nobody tells the epoch
        self.cls_head: nn.Linear | None = None
        self.priors = 1

    def set_activation(self, activation: str, background: bool = False) -> None:
        super().set_activation(activation, background)
        if activation == 'sigmoid' and self.base == 'dkd':
            raise ValueError(
                "IPWDLoss: base='dkd' needs softmax logits, but the head's are sigmoid logits, "
                "whose classes share no distribution; take base='kd' there."
            )

    def set_progress(self, iteration: int, epoch: int) -> None:
        self.started = epoch >= self.start_epoch

    def connect(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        features_shape: Sequence[int] | None = None,
        priors: int = 1,
    ) -> None:
        """Creates ``cls_head``, with C outputs for each of the ``priors``; the same sizes again do
        nothing. With several priors the loss needs to be told which one a row is.

        Raises:
            ValueError: if the logits do not fit, the features' shape is missing or no shape of
                features, or the loss is connected already to other sizes.
        """
        super().connect(student_shape, teacher_shape)
        if features_shape is None or len(features_shape) != len(student_shape):
            got = None if features_shape is None else tuple(features_shape)
            raise ValueError(
                'IPWDLoss needs the shape of the features that the student classifies, (N, D) or '
                f'(N, D, H, W) as the logits {tuple(student_shape)}, got {got}; '
                "tap the view 'cls_logits', which supplies them."
            )
        classes = int(student_shape[1])
        if classes < 2 and self.weighting['standardize']:
            raise ValueError(
                'IPWDLoss compares two classifiers by z-scores of their rows, and rows of one '
                'column (masks, or a single class) have none. Use KDLoss, or standardize=False.'
            )
        sizes = (int(features_shape[1]), classes * priors)
        if self.cls_head is None:
            self.cls_head = nn.Linear(*sizes)
            self.priors = priors
            if priors > 1:
                self.needs = (*type(self).needs, 'priors')
        elif sizes != (self.cls_head.in_features, self.cls_head.out_features):
            connected = self.cls_head.out_features // self.priors
            raise ValueError(
                f'IPWDLoss is connected to {self.cls_head.in_features} features and '
                f'{connected} classes, but got {sizes[0]} and {classes}; use one '
                'loss object per place.'
            )

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        features: Tensor | None = None,
        **more: Tensor | None,
    ) -> Tensor:
        """Returns the scalar loss; see :class:`LogitLoss`."""
        if features is not None:
            fresh = self.cls_head is None
            self.connect(student.shape, teacher.shape, features.shape, self.priors)
            if fresh:
                self.to(device=student.device, dtype=widen(student[:0]).dtype)
        return super().forward(student, teacher, labels, features, **more)

    def compute(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        features: Tensor,
        weights: Tensor | None = None,
        priors: Tensor | None = None,
    ) -> Tensor:
        cls_logits = self._cls_logits(features, priors, student.shape[1])
        sigmoid = self.activation == 'sigmoid'
        # Weights first: their temporary tensors are gone before the graph of the rows is built.
        factors = None
        if self.started:
            many = self.batch_coupled and dist.get_world_size() > 1
            factors = F.ipw_weights(
                student,
                cls_logits,
                labels,
                **self.weighting,
                sigmoid=sigmoid,
                sample_weights=weights,
                across=_sum_over_processes if many else None,
            )
        if self.base == 'dkd':
            rows = F.dkd(student, teacher, labels, self.temperature, reduction='none', **self.dkd)
        else:
            divergence = F.binary_kl if sigmoid else F.kl_divergence
            rows = divergence(student, teacher, self.temperature, 'none')
        if factors is None:
            factors = torch.ones_like(rows)
        seen = factors if weights is None else torch.where(weights > 0, factors, 0)
        self.report['weight_mean'] = weighted_mean(factors, weights).detach()
        self.report['weight_max'] = seen.amax() if seen.numel() else seen.sum()
        if sigmoid:
            cls = binary_cross_entropy(cls_logits, labels)
        else:
            cls = cross_entropy(cls_logits, labels.long(), reduction='none')
        self.auxiliary['cls'] = self.aux_weight * weighted_mean(cls, weights)
        return weighted_mean(factors * rows, weights)

    def _cls_logits(self, features: Tensor, priors: Tensor | None, classes: int) -> Tensor:
        """Logits (N, C) of the auxiliary classifier."""
        features = features.detach() if self.detach_aux else features
        assert self.cls_head is not None, 'connect() makes the classifier'
        logits = self.cls_head(features.to(self.cls_head.weight.dtype))
        if priors is None:
            return logits
        index = priors.long().view(-1, 1, 1).expand(-1, 1, classes)
        return logits.view(-1, self.priors, classes).gather(1, index).squeeze(1)

    def extra_repr(self) -> str:
        options = ''.join(f', {key}={value!r}' for key, value in self.weighting.items())
        return f'temperature={self.temperature}{options}, base={self.base!r}'


def _sum_over_processes(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


def _dkd_options(base: str, dkd: dict | None) -> dict[str, float]:
    """The weights of the two parts of DKD, checked."""
    if dkd is None:
        return {}
    if base != 'dkd' or not isinstance(dkd, dict):
        raise ValueError(
            f"dkd must be a dict such as dict(alpha=1.0, beta=8.0) beside base='dkd', "
            f'got {dkd!r} beside base={base!r}.'
        )
    check_keys(dkd, ('alpha', 'beta'), 'dkd')
    for key, value in dkd.items():
        check_number(f'dkd.{key}', value, 0)
    return dict(dkd)
