"""Losses between class logits."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .checks import check_choice, check_pair, check_temperature, reduce, widen

REDUCTIONS = ('mean', 'none')


def kl_divergence(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: str = 'mean'
) -> Tensor:
    r"""KL divergence between the softened class distributions (Hinton et al. 2015).

    .. math:: T^2 \sum_c p^T_c (\log p^T_c - \log p^S_c), \qquad p = \mathrm{softmax}(z / T)

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher; gets no gradient.
        temperature: :math:`T`, above 0.
        reduction: ``'mean'`` over the samples or ``'none'``.

    Returns:
        A scalar for ``'mean'``, one value per sample for ``'none'``.

    Shape:
        - student, teacher: (N, C)
        - output: () or (N,)

    Raises:
        ValueError: for unequal shapes, or an invalid temperature or reduction.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 3.0]]).log1p()
        >>> print(f'{kl_divergence(student, teacher).item():.6f}')  # p = (1/2, 1/2), (1/5, 4/5)
        0.192745
    """
    check_pair(student, teacher, 2, '(N, C)')
    check_temperature(temperature)
    check_choice('reduction', reduction, REDUCTIONS)
    return reduce(softened_kl(student, teacher, temperature), reduction)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """:math:`T^2` KL(teacher || student) of softmaxes over the last dimension, which it removes."""
    log_s = nnf.log_softmax(widen(student) / temperature, dim=-1)
    log_t = nnf.log_softmax(widen(teacher.detach()) / temperature, dim=-1)
    p = log_t.exp()
    return (p * log_t.sub_(log_s)).sum(-1) * temperature**2  # in place: one tensor less


def binary_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: str = 'mean'
) -> Tensor:
    r"""KL divergence between the softened Bernoulli distributions of sigmoid logits.

    .. math::
        T^2 \sum_c \Big[ p^T_c (\log p^T_c - \log p^S_c)
        + (1 - p^T_c) \big(\log (1 - p^T_c) - \log (1 - p^S_c)\big) \Big],
        \qquad p = \mathrm{sigmoid}(z / T)

    Args:
        student: Sigmoid logits of the student.
        teacher: Sigmoid logits of the teacher; gets no gradient.
        temperature: :math:`T`, above 0.
        reduction: ``'mean'`` over the samples or ``'none'``. Classes are summed either way.

    Returns:
        A scalar for ``'mean'``, one value per sample for ``'none'``.

    Shape:
        - student, teacher: (N, C)
        - output: () or (N,)

    Raises:
        ValueError: for unequal shapes, or an invalid temperature or reduction.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 3.0]]).log()
        >>> print(f'{binary_kl(student, teacher).item():.6f}')  # two classes, 1/2 and 3/4 each
        0.261624
    """
    check_pair(student, teacher, 2, '(N, C)')
    check_temperature(temperature)
    check_choice('reduction', reduction, REDUCTIONS)
    s = widen(student) / temperature
    t = widen(teacher.detach()) / temperature
    # logsigmoid(-z) is log(1 - sigmoid(z)) without the subtraction, which would round to log(0).
    on = t.sigmoid() * (nnf.logsigmoid(t) - nnf.logsigmoid(s))
    off = (-t).sigmoid() * (nnf.logsigmoid(-t) - nnf.logsigmoid(-s))
    return reduce((on + off).sum(-1) * temperature**2, reduction)


def divergence_along(
    student: Tensor, teacher: Tensor, temperature: float, dim: int, sigmoid: bool
) -> Tensor:
    """:func:`binary_kl` or :func:`kl_divergence` of tensors with the classes in ``dim``.

    ``dim`` stays, with size 1. Serves large maps outside of autograd: fewer temporary tensors.
    """
    s, t = _softened(student, temperature), _softened(teacher, temperature)
    if sigmoid:
        # p (t - s) + log(1 + e^s) - log(1 + e^t) is the divergence, without a single log(p)
        values = (t - s).mul_(t.sigmoid()).add_(nnf.softplus(s)).sub_(nnf.softplus(t))
    else:
        log_s, log_t = nnf.log_softmax(s, dim), nnf.log_softmax(t, dim)
        values = log_t.exp().mul_(log_t.sub_(log_s))
    return values.sum(dim, keepdim=True) * temperature**2


def divergence_slope(
    student: Tensor, teacher: Tensor, temperature: float, dim: int, sigmoid: bool, out: Tensor
) -> None:
    """Writes the student's gradient of :func:`divergence_along` into ``out``: T (p_S - p_T)."""
    # Step by step within ``out``: the one temporary tensor is the teacher's.
    out.copy_(student)
    t = torch.empty_like(teacher, dtype=out.dtype).copy_(teacher)
    if temperature != 1:
        out.div_(temperature)
        t.div_(temperature)
    if sigmoid:
        out.sigmoid_()
        p = t.sigmoid_()
    else:
        out.copy_(out.softmax(dim))
        p = t.softmax(dim)
    out.sub_(p)
    if temperature != 1:
        out.mul_(temperature)


def _softened(x: Tensor, temperature: float) -> Tensor:
    return widen(x) if temperature == 1 else widen(x) / temperature
