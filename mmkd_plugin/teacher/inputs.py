"""From the student's normalised batch to the teacher's, in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ..errors import Refusal
from ..images.pixels import Pixels, image_channels, of_preprocessor
from ..taps.body import image_shape, samples_of


class InputConverter:
    """Turns a batch normalised for the student into the teacher's normalisation.

    With means ``m`` and deviations ``s`` of student (S) and teacher (T) on the scale of 0 to 255,
    and P the swap of the colour channels when the two orders differ::

        x_T = (P(x_S * s_S + m_S) - m_T) / s_T

    Padding, which data preprocessors add after normalising, is set to the teacher's pad value and
    goes on to the teacher's divisor, so that the result is what the teacher's own preprocessor
    would have made of the same images.

    Args:
        student: what the student's images are: its data preprocessor, or :class:`.Pixels`.
        teacher: the same of the teacher.
        channels: of the images.

    Raises:
        ValueError: if it cannot be established what one of them was trained on.
    """

    def __init__(self, student: Any, teacher: Any, channels: int = 3) -> None:
        student, teacher = (
            side if isinstance(side, Pixels) else of_preprocessor(side)
            for side in (student, teacher)
        )
        _refuse_unknown(student, teacher)
        for role, side in (('student_inputs', student), ('teacher.inputs', teacher)):
            if side.source == 'stated' and side.order is None and channels == 3:
                raise ValueError(
                    f"{role} has no order, but the images have three channels: order='rgb' or "
                    "'bgr', whichever the network gets first."
                )
        if teacher.source == 'unknown':  # neither changes a pixel
            teacher = student
        s_mean, s_std, t_mean, t_std = (
            torch.tensor(values).view(-1, 1, 1)
            for values in (student.mean, student.std, teacher.mean, teacher.std)
        )
        self.channels = channels
        self.swap = channels == 3 and _orders_differ(student, teacher)
        if self.swap:
            s_mean, s_std = s_mean.flip(0), s_std.flip(0)
        # x_T = P(x_S) * scale + shift
        self._scale, self._shift = s_std / t_std, (s_mean - t_mean) / t_std
        same = torch.allclose(self._scale, torch.ones_like(self._scale), atol=1e-7)
        self._rescale = not (
            same and torch.allclose(self._shift, torch.zeros_like(self._shift), atol=1e-7)
        )
        self.pad_value = teacher.pad_value
        self._refill = self._rescale or student.pad_value != self.pad_value
        self.divisor = (
            1 if (student.divisor or 1) % (teacher.divisor or 1) == 0 else teacher.divisor
        )
        assumed = not student.normalises and student.source != 'stated'
        # What is still to be looked at: the loader's batch, and what the data preprocessor makes.
        self._unseen = {'loaded', 'final'} if assumed and (self.swap or self._rescale) else set()

    @property
    def is_identity(self) -> bool:
        return not (self.swap or self._rescale or self._refill or self.divisor > 1)

    def __call__(self, inputs: Any, data_samples: Any = None) -> Any:
        """Converts a batch; it is returned as it is when nothing differs.

        Args:
            inputs: images (N, C, H, W), clips (N, T, C, H, W), a list of images, or a dict of
                these; what else a dict holds (points, voxels) is left as it is.
            data_samples: of the batch, for what is padding in it.

        Raises:
            ValueError: clips with their channels at another place.
        """
        if self.is_identity:
            return inputs
        if isinstance(inputs, Tensor):
            return self._images(inputs, data_samples)
        if isinstance(inputs, dict):
            own = data_samples if isinstance(data_samples, dict) else {}
            return {key: self(value, own.get(key)) for key, value in inputs.items()}
        if isinstance(inputs, (list, tuple)) and all(_is_image(x) for x in inputs):
            samples = samples_of(inputs, inputs, data_samples) or [None] * len(inputs)
            return [self._images(x[None], [s])[0] for x, s in zip(inputs, samples)]
        return inputs

    def _images(self, inputs: Tensor, data_samples: Any) -> Tensor:
        if inputs.dim() == 5 and inputs.shape[2] == self.channels:
            frames = inputs.flatten(0, 1)
            done = self._images(frames, samples_of(frames, inputs, data_samples))
            return done.unflatten(0, inputs.shape[:2])
        if inputs.dim() > 4:
            raise ValueError(
                f'The batch has the shape {tuple(inputs.shape)}, in which the '
                f'{self.channels} channels are not where images (N, C, H, W) and clips '
                '(N, T, C, H, W) have them, so it cannot be brought to the normalisation of the '
                'teacher. Give student and teacher the same data_preprocessor.'
            )
        converted = inputs.flip(1) if self.swap else inputs
        if self._rescale:
            if self._scale.device != inputs.device:  # once: a copy in every step would wait for it
                self._scale = self._scale.to(inputs.device)
                self._shift = self._shift.to(inputs.device)
            wide = converted.to(torch.promote_types(inputs.dtype, torch.float32))
            converted = (wide * self._scale + self._shift).to(inputs.dtype)
        samples = samples_of(inputs, inputs, data_samples)
        if self._refill and samples:
            converted = converted.clone() if converted is inputs else converted
            for image, sample in zip(converted, samples):
                shape = image_shape(sample)
                if shape is not None:
                    image[:, shape[0] :, :] = self.pad_value
                    image[:, :, shape[1] :] = self.pad_value
        below, right = (-side % self.divisor for side in inputs.shape[-2:])
        if below or right:
            converted = nnf.pad(converted, (0, right, 0, below), value=self.pad_value)
        return converted

    def check(self, images: Any, stage: str = 'final') -> None:
        """Looks once at real images that are taken for pixels because nobody says otherwise.

        Args:
            images: a batch, as a tensor or a list of tensors.
            stage: ``'loaded'`` before, ``'final'`` after the student's data preprocessor.

        Raises:
            ValueError: if these are not pixels of 0 to 255.
        """
        tensors = [images] if isinstance(images, Tensor) else images
        if not (stage in self._unseen and isinstance(tensors, (list, tuple)) and tensors):
            return
        if not all(isinstance(x, Tensor) and x.numel() for x in tensors):
            return
        self._unseen.discard(stage)
        low = min(float(x.min()) for x in tensors)
        high = max(float(x.max()) for x in tensors)
        # Photometric distortion may leave 0..255, but not by so much with so little at the top.
        if high <= 20 or (low <= -60 and high <= 160):
            raise Refusal(
                "The student's data preprocessor has no mean and std, so its images are taken for "
                f'pixels of 0 to 255, but the first batch lies between {low:.3g} and {high:.3g}: '
                'something has normalised it before, and the teacher would see it normalised '
                'twice. Say what these images are: student_inputs=dict(mean=[...], std=[...], '
                "range=255 or 1, order='rgb' or 'bgr') (a key of DistillHook and of attach), or "
                'normalise in the data preprocessor.',
                lowest=low,
                highest=high,
            )


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def same_channels(student: nn.Module, teacher: nn.Module) -> int:
    """Number of channels of the images that both models take."""
    own, theirs = image_channels(student), image_channels(teacher)
    if own is not None and theirs is not None and own != theirs:
        raise Refusal(
            f'The student ({type(student).__name__}) takes images of {own} '
            f'channel{"s" if own > 1 else ""}, the teacher ({type(teacher).__name__}) of '
            f'{theirs}: they cannot see the same image. Take a teacher that was trained on '
            f'images of {own}, or let the student have in_channels={theirs} in its '
            'backbone and load such images.',
            student_channels=own,
            teacher_channels=theirs,
        )
    return own or theirs or 3


def _refuse_unknown(student: Pixels, teacher: Pixels) -> None:
    """The teacher's contract must be known, unless neither side changes a pixel."""
    swapped = student.order is not None and student.order != (student.files or student.order)
    if teacher.source == 'unknown' and (student.normalises or swapped):
        why = 'It has no data preprocessor that says on which images it was trained'
    elif teacher.source == 'raw' and student.early:
        why = (
            'Its data preprocessor has no mean and std. Either its pipeline normalised, as the '
            "student's does, or it was trained on pixels of 0 to 255, and which of both is not "
            'known here'
        )
    else:
        return
    raise Refusal(
        f"The teacher's images cannot be established. {why}. Say it: teacher=dict(..., "
        f"{student.statement}) for a teacher that was trained on images as the student's, "
        "inputs=dict(range=255, order='bgr') for plain pixels; mean and std belong to pixels of 0 "
        'to range, range being 255 or 1. In Python: Teacher(module, inputs=dict(...)).',
        teacher=teacher.source,
        student_mean=list(student.mean),
        student_std=list(student.std),
    )


def _orders_differ(student: Pixels, teacher: Pixels) -> bool:
    """Whether red and blue must be exchanged. A side that leaves the order of its files is taken
    to read such files as the other one, or as OpenMMLab does, BGR."""
    if student.order is None and teacher.order is None:
        return False
    orders = [
        one.order or other.files or 'bgr' for one, other in ((student, teacher), (teacher, student))
    ]
    return orders[0] != orders[1]
