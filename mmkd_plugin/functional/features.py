"""Losses between feature maps, and what corrupts a map before it is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import (
    MAPS,
    check_choice,
    check_number,
    check_pair,
    check_temperature,
    check_tensor,
    reduce,
    widen,
)
from .logits import softened_kl

NOISE_MODES = ('channel', 'shared', 'scalar', 'none')
NORMALIZE = ('mean', 'batch')
MASKS = ('position', 'channel')
REDUCTIONS = ('mean', 'none')


def channel_kl(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, reduction: str = 'mean'
) -> Tensor:
    r"""KL divergence between the spatial distributions of each channel (Shu et al. 2021).

    Every channel of every sample becomes a distribution over its positions :math:`k`:

    .. math:: T^2 \sum_k p^T_k (\log p^T_k - \log p^S_k), \qquad
        p = \mathrm{softmax}_k(x_{n,c,k} / T)

    A constant added to a channel changes nothing.

    Args:
        student: Feature map of the student.
        teacher: Feature map of the teacher; gets no gradient.
        temperature: :math:`T`, above 0.
        reduction: ``'mean'`` over samples and channels, or ``'none'``.

    Shape:
        - student, teacher: (N, C, H, W)
        - output: () or (N, C)

    Raises:
        ValueError: for unequal shapes, or an invalid temperature or reduction.

    Example:
        >>> import torch
        >>> student = torch.tensor([[[[0.0, 0.0]]]])
        >>> teacher = torch.tensor([[[[1.0, 3.0]]]]).log()
        >>> print(f'{channel_kl(student, teacher, temperature=1.0).item():.6f}')
        0.130812
    """
    check_pair(student, teacher, 4, MAPS)
    check_temperature(temperature)
    check_choice('reduction', reduction, REDUCTIONS)
    return reduce(softened_kl(student.flatten(2), teacher.flatten(2), temperature), reduction)


def feature_mse(
    student: Tensor, teacher: Tensor, normalize: str = 'mean', reduction: str = 'mean'
) -> Tensor:
    """Squared difference of two maps, averaged or summed inside a sample.

    Args:
        student: Feature map of the student.
        teacher: Feature map of the teacher; gets no gradient.
        normalize: What happens to the C·H·W elements of a sample: ``'mean'`` averages them,
            ``'batch'`` sums them.
        reduction: ``'mean'`` over the samples, or ``'none'``.

    Shape:
        - student, teacher: (N, C, H, W)
        - output: () or (N,)

    Raises:
        ValueError: for unequal shapes, or an invalid normalize or reduction.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
        >>> feature_mse(student, teacher).item()
        1.0
        >>> feature_mse(student, teacher, normalize='batch').item()
        48.0
    """
    check_pair(student, teacher, 4, MAPS)
    check_choice('normalize', normalize, NORMALIZE)
    check_choice('reduction', reduction, REDUCTIONS)
    squares = (widen(student) - widen(teacher.detach())).square().flatten(1)
    return reduce(squares.mean(1) if normalize == 'mean' else squares.sum(1), reduction)


def add_noise(
    x: Tensor,
    mode: str = 'channel',
    std: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adds zero-mean Gaussian noise that carries no gradient.

    Args:
        x: Feature map.
        mode: Shape of the noise. ``'channel'``: (N, C, H, W), every channel its own map.
            ``'shared'``: (N, 1, H, W), one map for all channels. ``'scalar'``: (N, C, 1, 1), one
            number per channel. ``'none'``: no noise, and no number is drawn.
        std: Standard deviation of the noise, at least 0.
        generator: Where the numbers come from, on the device of ``x``; None is the global state.

    Returns:
        ``x`` plus noise. The noise is drawn in float32 on the device of ``x``; the sum is float32,
        or float64 for a float64 ``x``.

    Shape:
        - x, output: (N, C, H, W)

    Raises:
        ValueError: if ``x`` is no float map, or the mode or std is invalid.

    Example:
        >>> import torch
        >>> x, generator = torch.zeros(2, 3, 4, 5), torch.Generator().manual_seed(0)
        >>> noise = add_noise(x, mode='shared', generator=generator)
        >>> bool((noise[:, 0] == noise[:, 2]).all())
        True
    """
    check_tensor('x', x, 4, MAPS)
    check_choice('mode', mode, NOISE_MODES)
    check_number('std', std, 0)
    if mode == 'none':
        return widen(x)
    n, c, h, w = x.shape
    shape = {'channel': (n, c, h, w), 'shared': (n, 1, h, w), 'scalar': (n, c, 1, 1)}[mode]
    noise = torch.randn(shape, generator=generator, device=x.device, dtype=torch.float32)
    return widen(x) + (noise if std == 1 else noise * std)


def mask_positions(
    x: Tensor, ratio: float = 0.65, generator: torch.Generator | None = None
) -> Tensor:
    """Sets random positions to zero in all channels at once (Yang et al. 2022).

    Args:
        x: Feature map; the positions that stay pass the gradient unchanged.
        ratio: Probability of a position to be masked, at least 0 and below 1.
        generator: Where the numbers come from, on the device of ``x``; None is the global state.

    Shape:
        - x, output: (N, C, H, W)

    Raises:
        ValueError: if ``x`` is no float map or the ratio is out of range.

    Example:
        >>> import torch
        >>> masked = mask_positions(torch.ones(1, 2, 100, 100), ratio=0.65)
        >>> 0.3 < masked.mean().item() < 0.4
        True
    """
    check_tensor('x', x, 4, MAPS)
    n, _, h, w = x.shape
    return _masked(x, (n, 1, h, w), ratio, generator)


def mask_channels(
    x: Tensor, ratio: float = 0.15, generator: torch.Generator | None = None
) -> Tensor:
    """Sets random channels to zero at all positions at once (Yang et al. 2022, on classifiers).

    Args:
        x: Feature map; the channels that stay pass the gradient unchanged.
        ratio: Probability of a channel to be masked, at least 0 and below 1.
        generator: Where the numbers come from, on the device of ``x``; None is the global state.

    Shape:
        - x, output: (N, C, H, W)

    Raises:
        ValueError: if ``x`` is no float map or the ratio is out of range.

    Example:
        >>> import torch
        >>> masked = mask_channels(torch.ones(1, 1000, 2, 2), ratio=0.15)
        >>> 0.8 < masked.mean().item() < 0.9
        True
    """
    check_tensor('x', x, 4, MAPS)
    return _masked(x, (*x.shape[:2], 1, 1), ratio, generator)


def _masked(
    x: Tensor, shape: tuple[int, ...], ratio: float, generator: torch.Generator | None
) -> Tensor:
    """``x`` times a random mask of 0 and 1 of this shape."""
    check_number('ratio', ratio, 0, 1)
    # rand lies in [0, 1): '>= ratio' keeps everything at ratio 0.
    draw = torch.rand(shape, generator=generator, device=x.device, dtype=torch.float32)
    return x * (draw >= ratio)
