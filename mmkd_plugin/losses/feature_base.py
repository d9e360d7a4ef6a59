"""What losses on feature maps have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.checks import check_int
from mmkd_plugin.functional.checks import MAPS, check_tensor
from mmkd_plugin.functional.compiling import is_compiling

from .base import DistillLoss


class FeatureLoss(DistillLoss):
    """A loss on feature maps (N, C, H, W) of one level, whose channel counts may differ.

    The student's map goes through ``align``, a 1x1 convolution to the teacher's channel count, or
    the identity if the counts are equal. One object serves one level.
    """

    def __init__(self) -> None:
        super().__init__()
        self.align: nn.Module | None = None
        self.channels: tuple[int, int] | None = None

    def connect(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        features_shape: Sequence[int] | None = None,
    ) -> None:
        """Creates the connectors from shapes (N, C, H, W); the same channels again do nothing.

        Raises:
            ValueError: if a shape has not four dimensions, or the loss is connected already to
                other channel counts.
        """
        for owner, shape in (('student', student_shape), ('teacher', teacher_shape)):
            if len(shape) != 4:
                raise ValueError(
                    f'{type(self).__name__} compares feature maps {MAPS}, '
                    f'but the {owner} tensor has shape {tuple(shape)}.'
                )
        channels = (int(student_shape[1]), int(teacher_shape[1]))
        if self.channels is None:
            self.channels = channels
            self.build_connectors(*channels)
        elif self.channels != channels:
            raise ValueError(
                f'{type(self).__name__} is connected to {self.channels[0]} student and '
                f'{self.channels[1]} teacher channels, but got {channels[0]} and {channels[1]}; '
                'use one loss object per level.'
            )

    def build_connectors(self, student_channels: int, teacher_channels: int) -> None:
        """Creates the trainable parts, float32 and with PyTorch's default initialisation."""
        if student_channels == teacher_channels:
            self.align = nn.Identity()
        else:
            self.align = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the scalar loss of two maps of the same height and width.

        Raises:
            ValueError: if an input is no float map (N, C, H, W), if batch, height or width differ,
                or if the channels are not the connected ones.
        """
        check_tensor(f'the student input of {type(self).__name__}', student, 4, MAPS)
        check_tensor(f'the teacher input of {type(self).__name__}', teacher, 4, MAPS)
        if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
            raise ValueError(
                f'{type(self).__name__} needs maps of the same batch size, height and width, got '
                f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}; tap levels of '
                "the same stride, or set resize='bilinear' in the term."
            )
        fresh = self.channels is None
        # Terms connect before a step is compiled; dynamo of torch 2.1 stumbles over the comparison.
        if fresh or not is_compiling():
            self.connect(student.shape, teacher.shape)
        if fresh:
            wide = torch.float64 if student.dtype == torch.float64 else torch.float32
            self.to(device=student.device, dtype=wide)
        # First this: where the noise ends a graph, super() must not be waiting (dynamo of torch 2.1
        # would compile what follows in every step).
        student = self.transform(student)
        return super().forward(student, teacher)

    def transform(self, student: Tensor) -> Tensor:
        """Brings the student's map to the teacher's channels; may run in autocast."""
        return run(self.align, student)


class GenerativeLoss(FeatureLoss):
    """A feature loss that corrupts the aligned student map and lets a generator restore it.

    ``generator`` is conv3x3 - ReLU - conv3x3 from the teacher's channel count to itself: no norm,
    no last activation, no residual. A subclass implements :meth:`corrupt`.

    Args:
        width: channels between both convolutions; None for the teacher's count C_t. The generator
            has 18 C_t width + C_t + width parameters: 75 million for 2,048 channels.
    """

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        if width is not None:
            check_int(width, 'width', 1)
        self.width = width
        self.generator: nn.Module | None = None

    def build_connectors(self, student_channels: int, teacher_channels: int) -> None:
        super().build_connectors(student_channels, teacher_channels)
        between = teacher_channels if self.width is None else self.width
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, between, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),  # neither convolution needs the values that it overwrites
            nn.Conv2d(between, teacher_channels, kernel_size=3, padding=1),
        )

    def transform(self, student: Tensor) -> Tensor:
        corrupted = self.corrupt(super().transform(student))
        return run(self.generator, corrupted)

    def corrupt(self, x: Tensor) -> Tensor:
        """Damages the aligned map (N, C, H, W)."""
        raise NotImplementedError(f'{type(self).__name__} must implement corrupt(x).')


def run(module: Any, x: Tensor) -> Tensor:
    """Runs a connector on ``x`` cast to its own precision; an autocast may then narrow it."""
    for weight in module.parameters():  # not next(): dynamo of torch 2.1 breaks the graph there
        return module(x.to(weight.dtype))
    return module(x)
