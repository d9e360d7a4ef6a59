"""From the student's normalised batch to the teacher's, in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class InputConverter:
    """Turns a batch normalised for the student into the teacher's normalisation.

    With means ``m`` and deviations ``s`` of student (S) and teacher (T), and P the swap of the
    colour channels when the two orders differ::

        x_T = (P(x_S * s_S + m_S) - m_T) / s_T

    Padding, which data preprocessors add after normalising, is set to the teacher's pad value, so
    that the result is what the teacher's own preprocessor would have made of the same images.

    Args:
        student: data preprocessor of the student, or ``None``.
        teacher: data preprocessor of the teacher, or ``None``.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        self.pad_value = _pad_value(teacher)
        self.swap = _swaps(student) != _swaps(teacher)
        s_mean, s_std = _statistics(student)
        t_mean, t_std = _statistics(teacher)
        if self.swap:
            s_mean, s_std = s_mean.flip(0), s_std.flip(0)
        # x_T = P(x_S) * scale + shift
        self._scale, self._shift = s_std / t_std, (s_mean - t_mean) / t_std
        same = torch.allclose(self._scale, torch.ones_like(self._scale), atol=1e-7)
        self._rescale = not (
            same and torch.allclose(self._shift, torch.zeros_like(self._shift), atol=1e-7)
        )
        self._refill = self._rescale or _pad_value(student) != self.pad_value

    @property
    def is_identity(self) -> bool:
        return not (self.swap or self._rescale or self._refill)

    def __call__(self, inputs: Tensor, data_samples: list | None = None) -> Tensor:
        """Converts (N, C, H, W) ``inputs``; they are returned as they are when nothing differs."""
        if self.is_identity:
            return inputs
        converted = inputs.flip(1) if self.swap else inputs
        if self._rescale:
            if self._scale.device != inputs.device:  # once: a copy in every step would wait for it
                self._scale = self._scale.to(inputs.device)
                self._shift = self._shift.to(inputs.device)
            wide = converted.to(torch.promote_types(inputs.dtype, torch.float32))
            converted = (wide * self._scale + self._shift).to(inputs.dtype)
        if self._refill and data_samples:
            converted = converted.clone() if converted is inputs else converted
            for image, sample in zip(converted, data_samples):
                shape = getattr(sample, 'img_shape', None)
                if shape is not None:
                    image[:, shape[0] :, :] = self.pad_value
                    image[:, :, shape[1] :] = self.pad_value
        return converted


def _pad_value(preprocessor: Any) -> float:
    """What is put around smaller images after normalising (MMDetection, MMSegmentation)."""
    return float(getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0)) or 0)


def _swaps(preprocessor: Any) -> bool:
    """Whether the preprocessor exchanges red and blue (MMEngine, MMDetection, MMSegmentation)."""
    for name in ('_channel_conversion', 'channel_conversion', 'to_rgb'):
        if hasattr(preprocessor, name):
            return bool(getattr(preprocessor, name))
    return False


def _statistics(preprocessor: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation, each (C, 1, 1) in float32; 0 and 1 where nothing is normalised."""
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return tuple(
        torch.as_tensor(v, dtype=torch.float32)
        .detach()
        .cpu()
        .reshape(-1, 1, 1)
        .expand(3, 1, 1)
        .clone()
        for v in (mean, std)
    )
