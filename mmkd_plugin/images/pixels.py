"""What the numbers in a model's image tensor mean, read from the model, its pipeline or a config.

Everything is told on one scale: a number is ``(pixel - mean) / std`` of a pixel from 0 to 255.
What cannot be established is not guessed; :mod:`.preprocess` refuses such pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_keys, check_number
from .pipelines import Step, flat, pipelines

_KEYS = ('mean', 'std', 'range', 'order')
_LINE = 'inputs=dict(mean=[...], std=[...], range=255 or 1, order=...)'
_OTHER = dict(rgb='bgr', bgr='rgb')
_PAD_VALUES = ('pad_value', 'pad_val')
_SWAPS = ('_channel_conversion', 'channel_conversion', 'to_rgb')


@dataclass(frozen=True)
class Pixels:
    """One side's contract.

    Attributes:
        mean: per channel, or one for all, on the scale 0..255.
        std: the same.
        order: ``'rgb'``, ``'bgr'``, or None: as in the files.
        files: order of the channels in the files, if known.
        source: how it is known: ``'stated'``, ``'pipeline'``, ``'preprocessor'`` (by its mean and
            std), ``'raw'`` (by a preprocessor without them), ``'unknown'`` (nobody says anything).
        early: whether the pipeline has normalised, before the data preprocessor.
        pad_value: what the preprocessor puts around smaller images, after normalising.
        divisor: of height and width, or None where no preprocessor says.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: str | None = None
    files: str | None = None
    source: str = 'unknown'
    early: bool = False
    pad_value: float = 0.0
    divisor: int | None = None

    @property
    def normalises(self) -> bool:
        return any(self.mean) or any(value != 1 for value in self.std)

    @property
    def statement(self) -> str:
        """The line of a config that says this."""
        values = []
        if self.normalises:
            values = [f'mean={_short(self.mean)}', f'std={_short(self.std)}']
        values += ['range=255', f'order={self.order or "bgr"!r}']
        return f'inputs=dict({", ".join(values)})'

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Pixels:
        """After ``(x - mean) / std`` of what it was."""
        count = max(len(mean), len(std), len(self.mean))
        m, s, m2, s2 = (_wide(v, count) for v in (self.mean, self.std, mean, std))
        return replace(
            self,
            mean=tuple(a + b * c for a, b, c in zip(m, s, m2)),
            std=tuple(a * b for a, b in zip(s, s2)),
        )

    def swapped(self) -> Pixels:
        """After red and blue were exchanged; whoever does that without more loads BGR."""
        files = self.files or 'bgr'
        order = _OTHER[self.order or files]
        return replace(self, mean=self.mean[::-1], std=self.std[::-1], order=order, files=files)


def stated(inputs: Any, where: str) -> Pixels:
    """A contract that a config states: ``dict(mean=..., std=..., range=255 | 1, order=...)``.

    Args:
        inputs: what the config says; without ``mean`` and ``std`` pixels are not normalised. Images
            of one channel have no ``order``.
        where: key of the config, for messages.

    Raises:
        ValueError: unknown keys, missing or contradictory values.
    """
    if not isinstance(inputs, dict):
        raise ValueError(f"{where}={inputs!r} must be a dict: {_LINE}, order being 'rgb' or 'bgr'.")
    check_keys(inputs, _KEYS, where)
    mean, std = (_values(inputs.get(key), f'{where}.{key}') for key in ('mean', 'std'))
    if (mean is None) != (std is None):
        raise ValueError(f'{where} has only one of mean and std; give both, or neither.')
    mean, std = mean or (0.0,), std or (1.0,)
    if min(std) <= 0:
        raise ValueError(f'{where}.std={list(std)} must be above 0.')
    if len(mean) != len(std) and 1 not in (len(mean), len(std)):
        raise ValueError(f'{where} has {len(mean)} values in mean, but {len(std)} in std.')
    top = inputs.get('range')
    if isinstance(top, bool) or top not in (1, 255):
        raise ValueError(
            f'{where}.range={top!r} must be 255 or 1: the pixels before mean and std go from 0 to '
            'this number.'
        )
    if (top == 1 and max(mean) > 1) or (top == 255 and _unit(mean, std)):
        raise ValueError(
            f'{where}: mean={list(mean)} and std={list(std)} do not belong to pixels of 0 to '
            f'{top}. Write range={256 - top}.'
        )
    order = inputs.get('order')
    grey = len(mean) == len(std) == 1 and inputs.get('mean') is not None
    if order not in ('rgb', 'bgr') and not (order is None and grey):
        raise ValueError(
            f"{where}.order={order!r} must be 'rgb' or 'bgr': which channel the network gets first."
        )
    pixels = Pixels(order=order, source='stated')
    return (_unit_range(pixels) if top == 1 else pixels).normalised(mean, std)


def of_model(model: nn.Module, data: Any = None, inputs: Any = None, where: str = '') -> Pixels:
    """The contract of a model that is built.

    Args:
        model: its ``data_preprocessor`` is read.
        data: the data set, or its config, whose pipeline feeds (or fed) it.
        inputs: a statement, which wins over what is read.
        where: key of the statement.

    Raises:
        ValueError: a bad statement, or a pipeline that normalises in a way that cannot be read.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if inputs is None:
        return of_preprocessor(preprocessor, _of_pipelines(data, where))
    return replace(stated(inputs, where), **_padding(unwrapped(preprocessor)))


def of_preprocessor(preprocessor: Any, pixels: Pixels = Pixels()) -> Pixels:
    """What an OpenMMLab data preprocessor (or None) makes of ``pixels``: the order of channels
    first, then mean and std.
    """
    preprocessor = unwrapped(preprocessor)
    pixels = replace(pixels, **_padding(preprocessor))
    if not _reads_images(preprocessor):
        return pixels
    files = getattr(preprocessor, 'file_order', None)  # only our own says it
    if pixels.files is None and files is not None:
        pixels = replace(pixels, files=files, order=files)
    if _swaps(preprocessor):
        pixels = pixels.swapped()
    source = 'raw' if pixels.source == 'unknown' else pixels.source
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return replace(pixels, source=source)
    source = 'preprocessor' if source == 'raw' else source
    return replace(_standardised(pixels, mean, std), source=source)


def unwrapped(preprocessor: Any) -> Any:
    """The preprocessor inside one that sorts branches (semi-supervised detectors)."""
    return getattr(preprocessor, 'data_preprocessor', preprocessor)


def _padding(preprocessor: Any) -> dict:
    return dict(pad_value=_pad_value(preprocessor), divisor=_divisor(preprocessor))


def _of_pipelines(data: Any, where: str) -> Pixels:
    """What the pipelines of a data set hand to the data preprocessor."""
    found = list(dict.fromkeys(_of_steps(chain, where) for chain in pipelines(data)))
    if len(found) > 1:
        told = '; '.join(pixels.statement for pixels in found)
        raise ValueError(
            f'The data sets that are trained on normalise their images differently ({told}): no '
            'conversion for the teacher fits all of them. Let their pipelines do the same.'
        )
    return found[0] if found else Pixels()


def _of_steps(steps: Sequence[Step], where: str) -> Pixels:
    pixels = Pixels()
    for step, always in flat(steps):
        mean, std = step.get('mean'), step.get('std')
        normalises = mean is not None and std is not None and 'Noise' not in step.name
        if step.name == 'Albu':  # its steps are albumentations' own
            normalises = 'Normalize' in str(step.get('transforms'))
        if step.name.startswith('LoadImage'):
            files = None if step.get('color_type') in ('grayscale', 'unchanged') else 'bgr'
            pixels = replace(pixels, files=files, order=files, source='pipeline')
        elif step.torchvision and _scales(step):
            pixels = replace(_unit_range(pixels), source='pipeline', early=True)
        elif step.name == 'Normalize' and normalises and always:
            pixels = pixels.swapped() if step.get('to_rgb') else pixels
            pixels = replace(_standardised(pixels, mean, std), source='pipeline', early=True)
        elif normalises or re.search('normali[sz]|standardi[sz]', step.name, re.IGNORECASE):
            raise ValueError(
                f'The step {step.name} of the pipeline normalises images in a way that cannot be '
                f'read from its settings. Say what comes out of it, {where}=dict(mean=[...], '
                "std=[...], range=255 or 1, order='rgb' or 'bgr'), or leave the step out and let "
                'the data preprocessor normalise.'
            )
        elif step.get('to_rgb') or step.get('to_bgr'):  # NumpyToPIL, PILToNumpy
            pixels = pixels.swapped()
    return pixels


def _scales(step: Step) -> bool:
    """Whether one of torchvision's transforms brings pixels to 0..1."""
    return step.name in ('ToTensor', 'ConvertImageDtype') or (
        step.name == 'ToDtype' and bool(step.get('scale'))
    )


def _standardised(pixels: Pixels, mean: Any, std: Any) -> Pixels:
    mean, std = _numbers(mean), _numbers(std)
    if not pixels.normalises and _unit(mean, std):  # somebody has divided by 255 before
        pixels = _unit_range(pixels)
    return pixels.normalised(mean, std)


def _unit_range(pixels: Pixels) -> Pixels:
    return pixels.normalised((0.0,), (255.0,))


def _unit(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether these can only belong to pixels of 0 to 1."""
    nothing = not any(mean) and all(value == 1 for value in std)
    return not nothing and max(map(abs, mean)) <= 1 and max(std) <= 1


def _values(value: Any, where: str) -> tuple[float, ...] | None:
    """Numbers of a config, one per channel."""
    if value is None:
        return None
    items = [value] if isinstance(value, (int, float)) else value
    if not isinstance(items, (list, tuple)) or not items:
        raise ValueError(f'{where}={value!r} must be a list of numbers, one for each channel.')
    return tuple(check_number(item, where) for item in items)


def _numbers(value: Any) -> tuple[float, ...]:
    """Numbers of a list, an array or a tensor (C, 1, 1)."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    return tuple(float(v) for v in torch.as_tensor(value, dtype=torch.float64).reshape(-1))


def _wide(values: Sequence[float], count: int) -> tuple[float, ...]:
    return tuple(values) * count if len(values) == 1 else tuple(values)


def _short(values: Sequence[float]) -> list[float]:
    return [float(f'{value:.6g}') for value in values]


# -- data preprocessors of MMEngine, MMDetection, MMSegmentation and MMPreTrain ------------------


def _reads_images(preprocessor: Any) -> bool:
    """Whether it is one that could normalise, not one that only moves tensors."""
    marks = ('mean', '_enable_normalize', *_PAD_VALUES, *_SWAPS)
    return any(hasattr(preprocessor, mark) for mark in marks)


def _pad_value(preprocessor: Any) -> float:
    """What is put around smaller images after normalising."""
    for name in _PAD_VALUES:
        if isinstance(getattr(preprocessor, name, None), (int, float)):
            return float(getattr(preprocessor, name))
    return 0.0


def _divisor(preprocessor: Any) -> int | None:
    if preprocessor is None or not _reads_images(preprocessor):
        return None
    for name in ('pad_size_divisor', 'size_divisor'):
        if getattr(preprocessor, name, None):
            return int(getattr(preprocessor, name))
    return 1


def _swaps(preprocessor: Any) -> bool:
    """Whether it exchanges red and blue."""
    for name in _SWAPS:
        if hasattr(preprocessor, name):
            return bool(getattr(preprocessor, name))
    return False


# -- how many channels -----------------------------------------------------------------------------


_MOST = 16  # a first convolution of more channels is not on the image


def image_channels(model: nn.Module) -> int | None:
    """The channels of the images that a model takes: as its mean says, or its first convolution.

    None where neither tells.
    """
    mean = getattr(unwrapped(getattr(model, 'data_preprocessor', None)), 'mean', None)
    if mean is not None and len(_numbers(mean)) > 1:
        return len(_numbers(mean))
    body = getattr(model, 'backbone', None)
    body = body if isinstance(body, nn.Module) else model
    modules = dict(body.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d) and module.in_channels:
            parents = [modules[name[:i]] for i, letter in enumerate(name) if letter == '.']
            # Focus (YOLOX) gives its convolution each image as four small ones.
            cut = any(type(parent).__name__ == 'Focus' for parent in parents)
            found = module.in_channels // 4 if cut else module.in_channels
            return found if found <= _MOST else None
    return None
