"""Inverse propensity weights of samples, from two classifiers on the same features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as nnf

from .checks import check_choice, check_inside, check_labels, check_tensor, widen

RATIOS = ('kd_over_cls', 'cls_over_kd')
NORMALIZE = ('none', 'batch_mean')
EPS = 1e-7  # smallest standard deviation and cross-entropy that are divided by


def ipw_weights(
    kd_logits: Tensor,
    cls_logits: Tensor,
    labels: Tensor,
    ratio: str = 'kd_over_cls',
    standardize: bool = True,
    normalize: str = 'none',
    clip_max: float | None = None,
    sigmoid: bool = False,
    sample_weights: Tensor | None = None,
    across: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""How much each sample counts in distillation (IPWD, Niu et al. 2022).

    .. math:: w_n = 1 + \frac{H(\tilde z^{kd}_n, y_n)}{H(\tilde z^{cls}_n, y_n)}, \qquad
        H(z, y) = -\log \mathrm{softmax}(z)_y

    A sample that the distilled classifier fits worse than the plainly trained one is rare in the
    teacher's answers and counts more. Weights lie above 1, and are 2 where both fit equally well.

    Args:
        kd_logits: Logits of the classifier that is distilled.
        cls_logits: Logits of the classifier that is trained on labels only.
        labels: Class indices :math:`y`.
        ratio: ``'kd_over_cls'`` as above, the direction that the method's argument asks for;
            ``'cls_over_kd'`` is its reverse. Which one the paper prints is unverified.
        standardize: :math:`\tilde z` is the z-score of the row (population standard deviation), so
            that the two classifiers' scales do not matter; False takes the logits as they are.
        normalize: ``'batch_mean'`` divides the weights by their mean, ``'none'`` does not.
        clip_max: Largest weight, applied after ``normalize``; None sets no limit.
        sigmoid: The logits are sigmoid logits: :math:`H` is the binary cross-entropy with the
            one-hot label, summed over the classes, and a label of C is the background, without any
            class.
        sample_weights: How much a row counts in the mean of ``'batch_mean'``; None is 1.
        across: Sums a tensor over the processes of a run: the mean is then that of all their
            batches. None is the own batch.

    Returns:
        One weight per sample, float32 or float64, without gradient.

    Shape:
        - kd_logits, cls_logits: (N, C)
        - labels, sample_weights, output: (N,)

    Raises:
        ValueError: for tensors that do not fit together, or an invalid option.

    Example:
        >>> import torch
        >>> kd, cls = torch.tensor([[4.0, 1, 0, -1]]), torch.tensor([[2.0, 1, 0, -1]])
        >>> ipw_weights(kd, cls, torch.tensor([0]))
        tensor([1.6594])
    """
    for name, logits in (('kd_logits', kd_logits), ('cls_logits', cls_logits)):
        check_tensor(name, logits, 2, '(N, C)')
    if kd_logits.shape != cls_logits.shape:
        raise ValueError(
            'kd_logits and cls_logits must have the same shape (N, C), got '
            f'{tuple(kd_logits.shape)} and {tuple(cls_logits.shape)}.'
        )
    rows, classes = kd_logits.shape
    check_labels(labels, rows, classes, background=sigmoid)
    check_choice('ratio', ratio, RATIOS)
    check_choice('normalize', normalize, NORMALIZE)
    if clip_max is not None:
        check_inside('clip_max', clip_max, 0)
    kd = _misfit(kd_logits.detach(), labels, standardize, sigmoid)
    cls = _misfit(cls_logits.detach(), labels, standardize, sigmoid)
    weights = 1 + (kd / cls if ratio == 'kd_over_cls' else cls / kd)
    if normalize == 'batch_mean':
        weights = weights / _mean(weights, sample_weights, across)
    return weights if clip_max is None else weights.clamp(max=clip_max)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy with the one-hot label, summed over the classes, (N,).

    A label of C is the background: no class is on.
    """
    z = widen(logits)
    on = z.gather(1, labels.long().clamp(max=z.shape[1] - 1).unsqueeze(1)).squeeze(1)
    # softplus(z) is what a class that is off costs, and softplus(z) - z one that is on.
    return nnf.softplus(z).sum(1) - torch.where(labels < z.shape[1], on, 0)


def _mean(
    weights: Tensor, share: Tensor | None, across: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Mean over the rows that count, 1 if there are none; their number stays on the device."""
    if share is None and across is None:
        return weights.mean()
    share = torch.ones_like(weights) if share is None else share.to(weights.dtype)
    sums = torch.stack([(weights * share).sum(), share.sum()])
    total, amount = sums if across is None else across(sums)
    return torch.where(amount > 0, total / torch.where(amount > 0, amount, 1), 1)


def _misfit(logits: Tensor, labels: Tensor, standardize: bool, sigmoid: bool) -> Tensor:
    """Cross-entropy per sample (N,), never 0."""
    z = widen(logits)
    if standardize:
        z = z - z.mean(1, keepdim=True)
        z = z / z.square().mean(1, keepdim=True).sqrt().clamp(min=EPS)
    if sigmoid:
        return binary_cross_entropy(z, labels).clamp(min=EPS)
    log_p = torch.log_softmax(z, 1).gather(1, labels.long().unsqueeze(1))
    return log_p.squeeze(1).neg().clamp(min=EPS)
