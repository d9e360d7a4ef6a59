"""Augmentation of whole batches on the device: one random draw per image, no loop over images.

Drawing and applying are apart, so that a teacher's view can use the same draw at another size, or a
draw of its own. Random numbers come from PyTorch's global generator of the batch's device.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from ..checks import check_bool, check_keys, nearest, split_type
from ..functional.checks import check_number

Size = int | Sequence[int]


class BatchTransform:
    """Base class.

    Attributes:
        sets_size: whether the result's size is this transform's own, so that :meth:`apply` can be
            asked for another one.
    """

    sets_size = False

    def __call__(self, images: Tensor) -> Tensor:
        return self.apply(images, self.draw(images))

    def draw(self, images: Tensor) -> Any:
        """Random parameters for a batch (N, C, H, W); None where nothing is random."""
        return None

    def apply(self, images: Tensor, params: Any, size: Size | None = None) -> Tensor:
        """Transforms (N, C, H, W), uint8 or float in 0..255.

        Args:
            images: the batch.
            params: what :meth:`draw` gave.
            size: height and width of the result instead of the transform's own.
        """
        raise NotImplementedError


class BatchRandomFlip(BatchTransform):
    """Mirrors each image left to right with probability ``prob``."""

    def __init__(self, prob: float = 0.5) -> None:
        check_number('prob', prob, 0.0, 1.0 + 1e-9)
        self.prob = prob

    def draw(self, images: Tensor) -> Tensor:
        return torch.rand(len(images), device=images.device) < self.prob

    def apply(self, images: Tensor, params: Tensor, size: Size | None = None) -> Tensor:
        return torch.where(params[:, None, None, None], images.flip(-1), images)


class BatchRandomCrop(BatchTransform):
    """Cuts ``size`` out of the image with ``padding`` black pixels around it.

    Every position is equally likely, as with ``torchvision.transforms.RandomCrop(size, padding)``.
    Black means 0 before normalising, as in the CIFAR protocol.
    """

    sets_size = True

    def __init__(self, size: Size, padding: int = 0) -> None:
        self.size = pair(size)
        check_number('padding', padding, 0)
        self.padding = int(padding)

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Top and left edge within the padded image, each (N,)."""
        rooms = [
            full + 2 * self.padding - cut + 1 for full, cut in zip(images.shape[2:], self.size)
        ]
        if min(rooms) < 1:
            raise ValueError(
                f'BatchRandomCrop cannot cut {self.size} out of images of {tuple(images.shape[2:])}'
                f' with padding={self.padding}.'
            )
        top, left = (torch.randint(room, (len(images),), device=images.device) for room in rooms)
        return top, left

    def apply(
        self, images: Tensor, params: tuple[Tensor, Tensor], size: Size | None = None
    ) -> Tensor:
        if self.padding:
            images = nnf.pad(images, (self.padding,) * 4)
        # All positions as one view: indexing it copies each image's window in whole rows.
        windows = images.unfold(2, self.size[0], 1).unfold(3, self.size[1], 1)
        numbers = torch.arange(len(images), device=images.device)
        cropped = windows[numbers, :, params[0], params[1]]
        return cropped if size is None else resize(cropped, pair(size), antialias=False)


class BatchRandomResizedCrop(BatchTransform):
    """A random part of each image, resized to ``size`` (the "inception crop").

    The sampling law is torchvision's: area and logarithm of the aspect ratio are uniform, sides are
    rounded, ten attempts, then the largest centre crop whose ratio is allowed. Bilinear without
    antialiasing; pixels beyond the crop are not looked at. The result is float.

    Args:
        size: height and width of the result.
        scale: smallest and largest part of the area; (0.05, 1) is FunMatch's.
        ratio: smallest and largest width / height.
    """

    sets_size = True
    attempts = 10

    def __init__(
        self,
        size: Size,
        scale: Sequence[float] = (0.05, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size = pair(size)
        self.scale, self.ratio = (_range(n, v) for n, v in (('scale', scale), ('ratio', ratio)))

    def draw(self, images: Tensor) -> Tensor:
        """Boxes (N, 4): top, left, height, width, whole numbers as float32."""
        count, (height, width) = len(images), images.shape[2:]
        area, log_ratio, y, x = torch.rand(4, self.attempts, count, device=images.device)
        area = (self.scale[0] + area * (self.scale[1] - self.scale[0])) * (height * width)
        low, high = (math.log(r) for r in self.ratio)
        ratio = torch.exp(low + log_ratio * (high - low))
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        # min: 1 - 2^-24 times a size may round up to the size itself
        top = torch.minimum((y * (height - h + 1)).floor(), height - h)
        left = torch.minimum((x * (width - w + 1)).floor(), width - w)
        first = fits.int().argmax(0, keepdim=True)
        boxes = torch.stack((top, left, h, w)).gather(1, first.expand(4, 1, count))[:, 0]
        found = fits.any(0)
        # Numbers, not a tensor: nothing is copied to the device.
        return torch.stack(
            [torch.where(found, b, c) for b, c in zip(boxes, self._centre(height, width))], dim=1
        )

    def _centre(self, height: int, width: int) -> tuple[float, ...]:
        ratio = width / height
        h, w = height, width
        if ratio < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif ratio > self.ratio[1]:
            w = round(height * self.ratio[1])
        return tuple(map(float, ((height - h) // 2, (width - w) // 2, h, w)))

    def apply(self, images: Tensor, params: Tensor, size: Size | None = None) -> Tensor:
        rows, columns = self.size if size is None else pair(size)
        top, left, h, w = params.unbind(1)
        y = _positions(top, h, rows, images.shape[2])
        x = _positions(left, w, columns, images.shape[3])
        grid = torch.stack(
            (x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)), dim=-1
        )
        return nnf.grid_sample(
            images.to(grid.dtype), grid, 'bilinear', 'border', align_corners=True
        )


class BatchResize(BatchTransform):
    """Resizes bilinearly: an int is the short side's new length, a pair is (height, width).

    The result is float, not rounded.
    """

    sets_size = True

    def __init__(self, size: Size, antialias: bool = True) -> None:
        pair(size)
        check_bool(antialias, 'antialias')
        self.size = size
        self.antialias = antialias

    def apply(self, images: Tensor, params: None = None, size: Size | None = None) -> Tensor:
        target = pair(self.size if size is None else size)
        if size is None and isinstance(self.size, int):
            short = min(images.shape[2:])
            height, width = images.shape[2:]
            target = self.size * height // short, self.size * width // short
        return resize(images, target, self.antialias)


class BatchCenterCrop(BatchTransform):
    """Cuts ``size`` out of the centre."""

    sets_size = True

    def __init__(self, size: Size) -> None:
        self.size = pair(size)

    def apply(self, images: Tensor, params: None = None, size: Size | None = None) -> Tensor:
        (height, width), (h, w) = images.shape[2:], self.size
        if h > height or w > width:
            raise ValueError(
                f'BatchCenterCrop cannot cut {self.size} out of images of {(height, width)}; put '
                'BatchResize before it, or load larger images.'
            )
        top, left = round((height - h) / 2), round((width - w) / 2)
        cropped = images[:, :, top : top + h, left : left + w]
        return cropped if size is None else resize(cropped, pair(size), antialias=False)


BATCH_TRANSFORMS = {
    cls.__name__: cls
    for cls in (
        BatchRandomFlip, BatchRandomCrop, BatchRandomResizedCrop, BatchResize, BatchCenterCrop
    )
}  # fmt: skip


def build_batch_transforms(configs: Sequence[dict] | None, where: str) -> list[BatchTransform]:
    """Builds ``[dict(type='BatchRandomFlip', ...), ...]``.

    Raises:
        ValueError: unknown type or argument, with the nearest valid names.
    """
    if configs is None:
        return []
    if isinstance(configs, dict):
        raise ValueError(f'{where} must be a list of dicts, got one dict: {configs!r}.')
    return [_build(config, f'{where}[{i}]') for i, config in enumerate(configs)]


def _build(config: Any, where: str) -> BatchTransform:
    if isinstance(config, BatchTransform):
        return config
    kind, kwargs = split_type(config, where, 'BatchRandomFlip')
    cls = kind
    if isinstance(kind, str):
        cls = BATCH_TRANSFORMS.get(kind.removeprefix('mmkd_plugin.'))
        if cls is None:
            raise ValueError(
                f'{where} names the batch transform {kind!r}, which does not exist; '
                f'{nearest(kind, BATCH_TRANSFORMS)}.'
            )
    check_keys(kwargs, inspect.signature(cls).parameters, f'{where} ({kind})')
    try:
        return cls(**kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where} ({kind}): {error}') from error


def resize(images: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """Bilinear resize of (N, C, H, W) to ``size``; the result is float32 or wider."""
    images = images if images.is_floating_point() else images.float()
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return nnf.interpolate(images, size, mode='bilinear', align_corners=False, antialias=antialias)


def pair(size: Size) -> tuple[int, int]:
    """(height, width) of an int or a pair.

    Raises:
        ValueError: anything else, or a size below 1.
    """
    sides = (size, size) if isinstance(size, int) else size
    good = isinstance(sides, Sequence) and not isinstance(sides, str) and len(sides) == 2
    if not good or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise ValueError(f'size must be a number of pixels or (height, width), got {size!r}.')
    return sides[0], sides[1]


def _positions(start: Tensor, length: Tensor, count: int, full: int) -> Tensor:
    """Where ``count`` samples of the crop lie, in grid_sample's -1..1; (N, count).

    Clamping to the crop's own first and last pixel is what resizing the cut-out crop would do.
    """
    steps = torch.arange(count, device=start.device, dtype=start.dtype) + 0.5
    inside = steps * (length / count)[:, None] - 0.5
    inside = torch.minimum(inside.clamp(min=0), length[:, None] - 1)
    pixels = start[:, None] + inside
    return pixels * (2 / max(full - 1, 1)) - 1


def _range(name: str, value: Any) -> tuple[float, float]:
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not numbers or not 0 < value[0] <= value[1]:
        raise ValueError(f'{name} must be (smallest, largest), both above 0, got {value!r}.')
    return float(value[0]), float(value[1])
