"""How else the teacher's images could be meant: other orders of channels, other mean and std."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..images.pixels import Pixels
from ..teacher.inputs import InputConverter

CHANNEL_ORDER, NORMALIZATION = 'channel-order', 'normalization'
OF_STUDENT = "as the student's"
# Mean and std on pixels from 0 to 255, red first.
CONVENTIONS = {
    'ImageNet': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    'Caffe': ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0)),
    'raw, 0 to 255': ((0.0,) * 3, (1.0,) * 3),
    '0 to 1': ((0.0,) * 3, (255.0,) * 3),
    '-1 to 1': ((127.5,) * 3, (127.5,) * 3),
}
_OTHER = dict(rgb='bgr', bgr='rgb')
_ALIKE = 0.15  # conventions that differ by less (in std) are one


@dataclass(frozen=True)
class Convention:
    """One way to make the teacher's images of the student's.

    Attributes:
        code: of the finding if the teacher reads them better so.
        name: for people.
        student: what the student's images are taken for.
        teacher: what the teacher is given.
        advice: the line of the config that says so.
        suspected: whether it is what a config is likely to have meant: red and blue exchanged, or
            the student's own mean and std. The others are guesses, of which one may fit by luck.
    """

    code: str
    name: str
    student: Pixels
    teacher: Pixels
    advice: str
    suspected: bool = False

    def converter(self, channels: int) -> InputConverter:
        """What makes the teacher's batches."""
        return InputConverter(self.student, self.teacher, channels)


def pixel_values(images: Tensor, student: Pixels) -> np.ndarray:
    """The student's images on the scale on which its mean and std are told: (C, K) numbers."""
    channels = images.shape[1]
    mean, std = (_wide(values, channels) for values in (student.mean, student.std))
    flat = images.detach().cpu().double().transpose(0, 1).flatten(1).numpy()
    return flat * np.array(std)[:, None] + np.array(mean)[:, None]


def conventions(student: Pixels, teacher: Pixels, values: np.ndarray) -> list[Convention]:
    """What to try beside the configured convention.

    Args:
        student: what the student's images are.
        teacher: what the teacher's are.
        values: pixels of some images, see :func:`pixel_values`.
    """
    found = []
    own, order = _orders(student, teacher)
    student = replace(student, order=own)
    stated = replace(teacher, source='stated', order=order)
    if len(values) == 3:
        swapped = replace(stated, order=_OTHER[order])
        turned = replace(swapped, mean=swapped.mean[::-1], std=swapped.std[::-1])
        for name, other in (
            ('red and blue exchanged', swapped),
            ('red and blue exchanged, their mean and std as well', turned),
        ):
            if other is swapped or not _is_alike(swapped, turned.mean, turned.std, 1e-6):
                found.append(Convention(CHANNEL_ORDER, name, student, other, _advice(other), True))
    tried = [teacher]
    for name, (mean, std) in _numbers(student, values, own == order).items():
        if order == 'bgr' and name in CONVENTIONS:
            mean, std = mean[::-1], std[::-1]
        mean, std = mean[: len(values)], std[: len(values)]
        if not any(_is_alike(pixels, mean, std) for pixels in tried):
            other = replace(stated, mean=tuple(mean), std=tuple(std))
            advice, suspected = _advice(other), name == OF_STUDENT
            found.append(Convention(NORMALIZATION, name, student, other, advice, suspected))
            tried.append(other)
    return found + _ranges(student, stated, float(values.max()))


def _advice(teacher: Pixels) -> str:
    return f'teacher=dict(..., {teacher.statement})'


def _orders(student: Pixels, teacher: Pixels) -> tuple[str, str]:
    """The order of channels on both sides, as the conversion takes it where one is not known."""
    theirs = teacher.order or student.files or 'bgr'
    if student.order is None and teacher.order is None:
        return theirs, theirs
    return student.order or teacher.files or 'bgr', theirs


def _numbers(
    student: Pixels, values: np.ndarray, same_order: bool
) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Mean and std by name; those of data and student in the teacher's order of channels."""
    mean, std = values.mean(1), values.std(1) + 1e-6
    own = _wide(student.mean, len(values)), _wide(student.std, len(values))
    turn = 1 if same_order else -1
    found: dict[str, Any] = {OF_STUDENT: (own[0][::turn], own[1][::turn]), **CONVENTIONS}
    found["these images' own mean and std"] = (tuple(mean[::turn]), tuple(std[::turn]))
    return found


def _ranges(student: Pixels, teacher: Pixels, highest: float) -> list[Convention]:
    """The student's images, where they are not the pixels from 0 to 255 that they count as."""
    factor = 255.0 if highest <= 4 else 1 / 255 if highest > 4 * 255 else None
    if factor is None:
        return []
    meant = replace(
        student,
        mean=tuple(factor * value for value in student.mean),
        std=tuple(factor * value for value in student.std),
        source='stated',
    )
    advice = f'student_{meant.statement}'
    return [Convention(NORMALIZATION, f'pixels times {factor:g}', meant, teacher, advice)]


def _is_alike(pixels: Pixels, mean: Any, std: Any, limit: float = _ALIKE) -> bool:
    own = np.array(_wide(pixels.mean, len(mean))), np.array(_wide(pixels.std, len(std)))
    mean, std = np.array(mean), np.array(std)
    far = np.concatenate([np.abs(own[0] - mean) / own[1], np.abs(std / own[1] - 1)])
    return bool((far < limit).all())


def _wide(values: Any, count: int) -> tuple[float, ...]:
    return tuple(values) * count if len(values) == 1 else tuple(values)
