"""Logit calibration: a teacher that is wrong about a sample is corrected before it is copied."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_inside, check_labels, check_temperature, check_tensor, widen

EPS = 1e-6  # what a calibrated sigmoid probability stays below 1, so that its logit is finite


def loca_calibrate(
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 0.9,
    temperature: float = 1.0,
    only_mispredicted: bool = True,
) -> Tensor:
    r"""Teacher logits with the target on top (LoCa, Yang et al. 2024).

    The other probabilities shrink by one factor, so that their ratios stay, and the target gets
    what they lose, until it leads the best of the others by :math:`1 - \alpha`. In logits only the
    target's moves:

    .. math:: z'_y = z_k + T \log\frac{1 + (1 - \alpha) S}{\alpha}, \qquad
        S = \sum_{c \ne y} e^{(z_c - z_k) / T}, \quad k = \arg\max_{c \ne y} z_c

    which is :math:`\log\frac{1 - \alpha + r}{\alpha} + \mathrm{logsumexp}_{c \ne y}(z_c / T)`,
    times :math:`T`, with :math:`r = 1 / S`. Nothing of it depends on the target's own logit, so
    that its probability may underflow.

    Args:
        teacher: Logits of the teacher.
        labels: Class indices :math:`y`.
        alpha: Share of the largest factor that would still leave the target on top; above 0
            (one-hot) and below 1 (tie). Default 0.9, from the range 0.9 to 1 in which the method is
            said to be robust.
        temperature: :math:`T` of the softmax whose probabilities are calibrated.
        only_mispredicted: Leave rows alone whose target is on top already, as the method is
            defined; a tie counts as on top. False serves an ablation: it lowers sure targets.

    Returns:
        Calibrated logits, float32 or float64, without gradient; rows left alone are unchanged.

    Shape:
        - teacher, output: (N, C)
        - labels: (N,)

    Raises:
        ValueError: for wrong tensors, or an invalid alpha or temperature.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.2, 0.5, 0.2, 0.1]]).log()
        >>> loca_calibrate(teacher, torch.tensor([0])).softmax(1)
        tensor([[0.4462, 0.3462, 0.1385, 0.0692]])
    """
    return calibrate(teacher, labels, alpha, temperature, only_mispredicted)[0]


def calibrate(
    teacher: Tensor, labels: Tensor, alpha: float, temperature: float, only_mispredicted: bool
) -> tuple[Tensor, Tensor]:
    """The logits of :func:`loca_calibrate`, and which rows the teacher mispredicts, (N,) bool."""
    check_tensor('teacher', teacher, 2, '(N, C)')
    check_labels(labels, *teacher.shape)
    check_inside('alpha', alpha, 0, 1)
    check_temperature(temperature)
    z = widen(teacher.detach())
    index = labels.long().unsqueeze(1)
    target = z.gather(1, index)
    others = z.scatter(1, index, -math.inf)
    top = others.amax(1, keepdim=True)
    wrong = top > target
    total = others.sub_(top).div_(temperature).exp_().sum(1, keepdim=True)
    moved = top + temperature * ((1 + (1 - alpha) * total) / alpha).log()
    # With a single class there are no others: top is -inf and moved NaN.
    chosen = wrong if only_mispredicted else top > -math.inf
    return z.scatter(1, index, torch.where(chosen, moved, target)), wrong.squeeze(1)


def loca_margin(
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 0.9,
    temperature: float = 1.0,
    only_mispredicted: bool = True,
) -> Tensor:
    r"""Teacher's sigmoid logits with the target on top: the margin of LoCa without its simplex.

    The classes of a sigmoid head share no probability that could move from one to another. What
    stays of :func:`loca_calibrate` is the lead of the target :math:`y`, which is raised to

    .. math:: p'_y = \min(1 - \epsilon, \max_{c \ne y} p_c + 1 - \alpha), \qquad
        p = \mathrm{sigmoid}(z / T), \quad \epsilon = 10^{-6}

    in rows whose target is not on top. Everything else stays: the other classes, rows without a
    target, targets on top.

    Args:
        teacher: Sigmoid logits of the teacher.
        labels: Class indices :math:`y`; C is the background, a row without a target.
        alpha: 1 minus the lead, above 0 and below 1. Default 0.9.
        temperature: :math:`T` of the probabilities that are calibrated.
        only_mispredicted: Leave rows alone whose target is on top already; a tie counts as on top.
            False raises those as well that lead by less, and lowers none.

    Returns:
        Calibrated logits, float32 or float64, without gradient; what is left alone is unchanged.

    Shape:
        - teacher, output: (N, C)
        - labels: (N,)

    Raises:
        ValueError: for wrong tensors, or an invalid alpha or temperature.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]).logit()
        >>> loca_margin(teacher, torch.tensor([0, 3])).sigmoid()  # 3: background
        tensor([[0.6000, 0.5000, 0.3000],
                [0.2000, 0.5000, 0.3000]])
    """
    return raise_target(teacher, labels, alpha, temperature, only_mispredicted)[0]


def raise_target(
    teacher: Tensor, labels: Tensor, alpha: float, temperature: float, only_mispredicted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of :func:`loca_margin`; which rows the teacher mispredicts, and which have a
    target at all, both (N,) bool."""
    check_tensor('teacher', teacher, 2, '(N, C)')
    rows, classes = teacher.shape
    check_labels(labels, rows, classes, background=True)
    check_inside('alpha', alpha, 0, 1)
    check_temperature(temperature)
    z = widen(teacher.detach())
    positive = labels < z.shape[1]
    index = labels.long().clamp(max=z.shape[1] - 1).unsqueeze(1)
    target = z.gather(1, index).squeeze(1)
    top = z.scatter(1, index, -math.inf).amax(1)
    wrong = positive & (top > target)
    # 1 - p'_y from 1 - p_top: near 1 the subtraction would round it away.
    rest = ((-top / temperature).sigmoid() - (1 - alpha)).clamp(min=EPS)
    raised = temperature * (torch.log1p(-rest) - rest.log())
    # With a single class top is -inf: nothing is ever wrong, and there is nothing to lead.
    short = positive & (top > -math.inf) & (raised > target)
    moved = torch.where(wrong if only_mispredicted else short, torch.max(raised, target), target)
    return z.scatter(1, index, moved.unsqueeze(1)), wrong, positive
