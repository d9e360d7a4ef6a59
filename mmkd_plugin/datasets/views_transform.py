"""Student and teacher views of one image, made in the workers of an on-disk data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tvf

from ..checks import check_bool
from ..functional.checks import check_choice, check_number
from .batch_transforms import Size, pair

MODES = ('same', 'fixed', 'independent')


class TeacherStudentViews(nn.Module):
    """Makes two views of an image: the student's inception crop, and the teacher's.

    The settings of "A good teacher is patient and consistent" (FunMatch, 2021). Put it last in the
    ``transforms`` of ``TorchvisionDataset``; the second view becomes ``teacher_inputs``.

    Args:
        mode: ``'same'``: one crop and flip, resized once for each network. ``'fixed'``: the teacher
            sees the centre of the image, neither cropped at random nor flipped; resize the image
            before (``dict(type='Resize', size=160)``). ``'independent'``: the teacher gets a crop
            and flip of its own.
        size: height and width for the student.
        teacher_size: the same for the teacher; by default ``size``.
        scale: smallest and largest part of the area.
        ratio: smallest and largest width / height.
        flip: probability of mirroring.
        antialias: of the resizing.
    """

    def __init__(
        self,
        size: Size,
        mode: str = 'same',
        teacher_size: Size | None = None,
        scale: Sequence[float] = (0.05, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        check_choice('mode', mode, MODES)
        check_number('flip', flip, 0.0, 1.0 + 1e-9)
        check_bool(antialias, 'antialias')
        self.mode = mode
        self.size = list(pair(size))
        self.teacher_size = self.size if teacher_size is None else list(pair(teacher_size))
        self.scale, self.ratio = list(scale), list(ratio)
        self.flip = flip
        self.antialias = antialias

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """The views of ``image`` (C, H, W); None where the teacher's is the student's."""
        crop = self._crop(image)
        student = self._resized(crop, self.size)
        if self.mode == 'same':
            if self.teacher_size == self.size:
                return student, None
            return student, self._resized(crop, self.teacher_size)
        if self.mode == 'fixed':
            return student, tvf.center_crop(image, self.teacher_size)
        return student, self._resized(self._crop(image), self.teacher_size)

    def _crop(self, image: Tensor) -> Tensor:
        box = RandomResizedCrop.get_params(image, self.scale, self.ratio)
        image = tvf.crop(image, *box)
        return tvf.horizontal_flip(image) if torch.rand(()) < self.flip else image

    def _resized(self, image: Tensor, size: list[int]) -> Tensor:
        return tvf.resize(image, size, antialias=self.antialias)
