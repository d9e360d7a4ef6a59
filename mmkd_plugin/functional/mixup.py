"""Mixing the images of a batch."""

from __future__ import annotations

from torch import Tensor

from .checks import check_number, widen


def mixup(images: Tensor, lam: float | Tensor) -> Tensor:
    r"""Every image mixed with the one before it in the batch (as in function matching, 2021).

    .. math:: \tilde x_n = \lambda x_n + (1 - \lambda) x_{n-1}, \qquad x_{-1} = x_{N-1}

    Args:
        images: At least two float images.
        lam: :math:`\lambda` from 0 to 1, one for the whole batch: a number, or a tensor without
            dimensions (whose value is not looked at).

    Returns:
        The mixed images, float32 or float64.

    Shape:
        - images, output: (N, ...), usually (N, 3, H, W)

    Raises:
        ValueError: for a single image, images of integers, or a wrong ``lam``.

    Example:
        >>> import torch
        >>> mixup(torch.tensor([[1.0, 0], [0, 2], [4, 4]]), 0.7)
        tensor([[1.9000, 1.2000],
                [0.3000, 1.4000],
                [2.8000, 3.4000]])
    """
    if not isinstance(images, Tensor) or not images.is_floating_point() or not images.ndim:
        kind = (
            f'shape {tuple(images.shape)} and dtype {images.dtype}'
            if isinstance(images, Tensor)
            else f'a {type(images).__name__}'
        )
        raise ValueError(f'images must be a float tensor (N, ...), got {kind}.')
    if images.shape[0] < 2:
        raise ValueError(
            f'mixup needs at least two images in the batch, got images of shape '
            f'{tuple(images.shape)}.'
        )
    if not isinstance(lam, Tensor):
        check_number('lam', lam, 0)
        if lam > 1:
            raise ValueError(f'lam must be a number from 0 to 1, got {lam!r}.')
    elif lam.ndim:
        raise ValueError(f'lam must be one number, got a tensor of shape {tuple(lam.shape)}.')
    x = widen(images)
    return lam * x + (1 - lam) * x.roll(1, 0)
