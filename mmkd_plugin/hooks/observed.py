"""What the terms of one step compared, reduced to what can be drawn, for the first images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from ..images.pixels import Pixels
from ..taps import Capture
from ..terms.base import Term
from ..views import Predictions
from ..visualization.pictures import class_picture, map_picture, place_picture
from .observed_rows import ImageRows, places, rows_of

_STRETCHED = 20  # values up to here are no pixels of 0 to 255


class Picture(NamedTuple):
    """A picture and its name.

    Attributes:
        name: without white space and slashes, as backends make files of it.
        array: RGB, (H, W, 3), uint8.
    """

    name: str
    array: np.ndarray


@dataclass
class Observed:
    """Draws what terms compare in one step. Nothing that it is shown is changed or kept.

    Attributes:
        inputs: the student's images (N, C, H, W).
        pixels: what they are.
        count: how many of them are drawn.
        classes: names of the classes, as far as they are known.
        pictures: what was drawn.
    """

    inputs: Tensor
    pixels: Pixels
    count: int
    classes: Sequence[str] = ()
    pictures: list[Picture] = field(default_factory=list)

    def __post_init__(self) -> None:
        chosen = self.inputs.detach()[: self.count].float().cpu()
        self.images = [as_rgb(image, self.pixels) for image in chosen]

    @torch.no_grad()
    @torch.autocast('cpu', enabled=False)
    def maps(self, term: Term, student: Capture, teacher: Capture) -> None:
        """Draws two maps (N, C, h, w) of a level; other tensors have no picture."""
        if student.tensor.dim() != 4 or teacher.tensor.dim() != 4:
            return
        for i, image in enumerate(self.images[: len(teacher.tensor)]):
            own, theirs = attention(student.tensor[i]), attention(teacher.tensor[i])
            if own.shape != theirs.shape:
                size = (own.shape[0], own.shape[1])
                theirs = nnf.interpolate(theirs[None, None], size, mode='bilinear')[0, 0]
            title = f'{term.name}: {student.label} <- {teacher.label}'
            picture = map_picture(image, own.numpy(), theirs.numpy(), title)
            self._add(term, student.label, i, picture)

    @torch.no_grad()
    @torch.autocast('cpu', enabled=False)
    def rows(
        self,
        term: Term,
        student: Predictions,
        teacher: Predictions,
        columns: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Draws where the classes of a head's rows differ, or which they are for a whole image."""
        for i, image in enumerate(self.images):
            found = [
                rows_of(i, level, other, student, columns)
                for level, other in zip(student.levels, teacher.levels)
            ]
            known = [rows for rows in found if rows is not None]
            if len(known) < len(found):
                continue
            title = f'{term.name}: {student.label} <- {teacher.label}'
            if student.kind == 'image':
                picture = self._classes(image, known[0], columns, title)
            else:
                values = torch.cat([rows.values for rows in known])
                mean, most = (values.mean(), values.max()) if len(values) else (0.0, 0.0)
                title += f'\ndisagreement {mean:.3f} on average, {most:.3f} at most'
                picture = place_picture(image, places(known, student, image.shape[:2]), title)
            self._add(term, student.label, i, picture)

    def _classes(
        self,
        image: np.ndarray,
        rows: ImageRows,
        columns: tuple[Tensor, Tensor] | None,
        title: str,
    ) -> np.ndarray:
        own, theirs = rows.student.flatten().numpy(), rows.teacher.flatten().numpy()
        indices = range(len(own)) if columns is None else columns[0].tolist()
        names = [self.classes[i] if i < len(self.classes) else str(i) for i in indices]
        return class_picture(image, own, theirs, names, title)

    def _add(self, term: Term, label: str, image: int, picture: np.ndarray) -> None:
        plain = ''.join(c if c.isalnum() or c in '._' else '-' for c in label)
        name = f'distill_{term.name}_{plain}' + (f'_{image}' if self.count > 1 else '')
        self.pictures.append(Picture(name, picture))


def attention(features: Tensor) -> Tensor:
    """Mean size of the channels at each position of a map (C, h, w), in units of its own mean.

    It has no unit of the network's own, so maps of different widths and scales can be compared.
    """
    sizes = features.detach().float().abs().mean(0).nan_to_num(posinf=0.0).cpu()
    return sizes / sizes.mean().clamp(min=torch.finfo(sizes.dtype).tiny)


def as_rgb(image: Tensor, pixels: Pixels) -> np.ndarray:
    """A normalised image (C, H, W) as RGB pixels (H, W, 3)."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
    image = (image * std + mean).nan_to_num()
    if float(image.max()) <= _STRETCHED:  # nobody has said how it was normalised
        image = image - image.min()
        image = image * (255 / image.max().clamp(min=1e-6))
    if len(image) == 3 and (pixels.order or pixels.files or 'bgr') == 'bgr':
        image = image.flip(0)
    elif len(image) != 3:
        image = image[:1].expand(3, -1, -1)
    return image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
