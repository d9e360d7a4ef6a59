"""Inverse propensity weights of samples, from two classifiers on the same features."""

from __future__ import annotations

import torch
from torch import Tensor

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

    Returns:
        One weight per sample, float32 or float64, without gradient.

    Shape:
        - kd_logits, cls_logits: (N, C)
        - labels, output: (N,)

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
    check_labels(labels, *kd_logits.shape)
    check_choice('ratio', ratio, RATIOS)
    check_choice('normalize', normalize, NORMALIZE)
    if clip_max is not None:
        check_inside('clip_max', clip_max, 0)
    kd = _misfit(kd_logits.detach(), labels, standardize)
    cls = _misfit(cls_logits.detach(), labels, standardize)
    weights = 1 + (kd / cls if ratio == 'kd_over_cls' else cls / kd)
    if normalize == 'batch_mean':
        weights = weights / weights.mean()
    return weights if clip_max is None else weights.clamp(max=clip_max)


def _misfit(logits: Tensor, labels: Tensor, standardize: bool) -> Tensor:
    """Cross-entropy per sample (N,), never 0."""
    z = widen(logits)
    if standardize:
        z = z - z.mean(1, keepdim=True)
        z = z / z.square().mean(1, keepdim=True).sqrt().clamp(min=EPS)
    log_p = torch.log_softmax(z, 1).gather(1, labels.long().unsqueeze(1))
    return log_p.squeeze(1).neg().clamp(min=EPS)
