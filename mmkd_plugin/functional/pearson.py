"""Pearson correlation of two feature maps, channel by channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import MAPS, check_choice, check_pair, check_tensor, reduce, widen
from .compiling import is_compiling

REDUCTIONS = ('mean', 'none')
CHANNELS = (0, 2, 3)  # the dimensions that a sum of a channel goes over


def standardize_channels(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Brings every channel to mean 0 and standard deviation 1 over batch and positions.

    Args:
        x: Feature map. float16 and bfloat16 become float32.
        eps: Floor of the standard deviation, so that a constant channel becomes 0.

    Shape:
        - x, output: (N, C, H, W)

    Example:
        >>> import torch
        >>> standardize_channels(torch.tensor([[[[1.0, 3.0]]]])).flatten().tolist()
        [-1.0, 1.0]
    """
    check_tensor('x', x, 4, MAPS)
    x = widen(x)
    count = _count(x)
    x = x - x.sum(CHANNELS, keepdim=True) / count
    variance = x.square().sum(CHANNELS, keepdim=True) / count
    # The floor is inside the root: its gradient stays finite where a channel is constant.
    return x * (variance + eps**2).rsqrt()


def pearson_distance(
    student: Tensor, teacher: Tensor, reduction: str = 'mean', eps: float = 1e-6
) -> Tensor:
    r"""One minus the Pearson correlation of student and teacher, per channel (Cao et al. 2022).

    Both maps are standardised: in every channel, the mean over batch and positions is subtracted
    and the result divided by the standard deviation over batch and positions (divisor
    :math:`m = N H W`). Half the mean squared difference of two standardised maps is the distance:

    .. math:: \frac{1}{2m} \sum_i (\hat s_i - \hat t_i)^2 = 1 - r(s, t)

    It lies in [0, 2] and does not change when a channel is scaled by a positive number or shifted.

    Args:
        student: Feature map of the student.
        teacher: Feature map of the teacher; gets no gradient.
        reduction: ``'mean'`` over the channels, or ``'none'``.
        eps: Floor of the standard deviation.

    Shape:
        - student, teacher: (N, C, H, W)
        - output: () or (C,)

    Raises:
        ValueError: for unequal shapes or an invalid reduction.

    Example:
        >>> import torch
        >>> student = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> print(f'{pearson_distance(student, -5 * student).item():.4f}')
        2.0000
    """
    check_pair(student, teacher, 4, MAPS)
    check_choice('reduction', reduction, REDUCTIONS)
    teacher = teacher.detach()
    if is_compiling():  # the compiler fuses the plain formula by itself
        s, t = standardize_channels(student, eps), standardize_channels(teacher, eps)
        return reduce((s - t).square().sum(CHANNELS) / (2 * _count(s)), reduction)
    return reduce(_Distance.apply(student, teacher, eps), reduction)


class _Distance(torch.autograd.Function):
    r"""The distance of each channel, (C,), by sums over the centred maps.

    With :math:`\sigma^2` for variance plus squared floor, and centred maps :math:`s, t`, it is

    .. math:: \frac{1}{2 m \sigma_s^2} \sum_i d_i^2, \qquad d = s - (\sigma_s / \sigma_t) \, t

    so that no standardised map is made. The gradient is a sum of :math:`d` and :math:`t`, with two
    factors for each channel.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(widen(student[:0]).dtype, teacher.dtype)
        count = _count(student)
        (s, s_rest), (t, t_rest) = _centred(student, wide), _centred(teacher, wide)
        s_variance, t_variance = _squares(s) / count, _squares(t) / count
        s_power, t_power = s_variance + eps**2, t_variance + eps**2
        ratio = (s_power / t_power).sqrt()
        difference = s.addcmul_(t, -ratio)  # in the place of s, which is not needed any more
        rest = s_rest - ratio * t_rest
        distance = _squares(difference) / (2 * count) / s_power
        # What one standardised map less the other has in common with the student's.
        common = distance + (s_variance / s_power - t_variance / t_power) / 2
        ctx.save_for_backward(difference, t, rest, t_rest, ratio, common, count * s_power)
        ctx.dtype = student.dtype
        return distance.flatten()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        difference, t, rest, t_rest, ratio, common, power = ctx.saved_tensors
        scale = upstream.view_as(power) / power
        of_difference, of_t = scale * (1 - common), -scale * common * ratio
        shift = -of_difference * rest - of_t * t_rest  # a gradient of mean 0
        slope = torch.addcmul(shift, difference, of_difference).addcmul_(t, of_t)
        return slope.to(ctx.dtype), None, None


def _centred(x: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """``x`` less the mean of each channel, a new tensor, and what rounding has left of the mean."""
    x = x - x.sum(CHANNELS, keepdim=True, dtype=wide) / _count(x)
    return x, x.sum(CHANNELS, keepdim=True) / _count(x)


def _squares(x: Tensor) -> Tensor:
    """The sum of squares of each channel, (1, C, 1, 1)."""
    if x.is_contiguous():  # reads the map once; on CPUs fast along the last dimension only
        sums = torch.linalg.vector_norm(x.flatten(2), dim=2).square().sum(0)
    else:
        sums = x.square().sum(CHANNELS)
    return sums.view(1, -1, 1, 1)


def _count(x: Tensor) -> int:
    """Numbers in a channel; 1 of an empty batch, which gives 0 then, not NaN."""
    return max(x.shape[0] * x.shape[2] * x.shape[3], 1)
