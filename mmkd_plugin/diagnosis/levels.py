"""Whether the maps of a level belong together: their strides, and where things are on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as nnf

SMALLEST = 6  # cells of a side, below which a shift cannot be told
REACH = 0.5  # of a side, how far maps are moved
_CHANNELS = 16  # of each map; more are mixed to so many
_SIDE = 64  # cells; larger maps are averaged to about so many
_MOST_IMAGES = 32
_RIDGE = 1e-2


@dataclass
class LevelPair:
    """A level of a term.

    Attributes:
        student: where the student's map is from.
        teacher: the teacher's.
        sizes: height and width of both, of the last batch.
        maps: of the images, student's and teacher's, each (C, H, W) and small.
    """

    student: str
    teacher: str
    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    maps: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def alike(self) -> list[tuple[Tensor, Tensor]]:
        """The maps of the size that most images have."""
        sizes = [s.shape[1:] for s, _ in self.maps]
        size = max(sizes, key=sizes.count, default=None)
        return [pair for pair in self.maps if pair[0].shape[1:] == size]


def look_at_levels(levels: dict[str, LevelPair], heard: tuple[list, list]) -> None:
    """Adds what one step has shown.

    Args:
        levels: by the label of the student's map.
        heard: captures of student and teacher, step by step.
    """
    for own, theirs in zip(*heard):
        for s, t in zip(own, theirs):
            sizes = tuple(s.tensor.shape[2:]), tuple(t.tensor.shape[2:])
            level = levels.setdefault(s.label, LevelPair(s.label, t.label, sizes))
            level.sizes = sizes
            room = _MOST_IMAGES - len(level.maps)
            small = not all(sizes) or min(map(min, sizes)) < SMALLEST
            if not small and room > 0 and s.tensor.shape[::2] == t.tensor.shape[::2]:
                level.maps += zip(*(_mixed(x.tensor.detach()[:room]) for x in (s, t)))


def moves(height: int, width: int) -> list[tuple[str, int, int]]:
    """What is tried: no change first, then shifts by rows and columns, and mirrored maps."""
    rows, columns = (
        sorted({round(k * REACH * side / 4) for k in range(-4, 5)}) for side in (height, width)
    )
    near = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
    places = [(0, 0), *near, *((r, 0) for r in rows), *((0, c) for c in columns)]
    places += [(r, c) for r in rows[::2] for c in columns[::2]]
    places += [(rows[k], columns[k]) for k in (1, -2)] + [(rows[1], columns[-2])]
    places += [(rows[-2], columns[1])]
    mirrored = [(name, 0, 0) for name in ('left and right', 'up and down', 'both')]
    return [*(('shift', r, c) for r, c in dict.fromkeys(places)), *mirrored]


def agreement(maps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """How far the maps of student and teacher can be made to agree, place by place.

    A linear map of the channels, such as a connector of 1x1, is found on half of the images, and
    what it gives is correlated on the others. What all images have in common at a place, such as
    objects in the middle, does not count.

    Args:
        maps: of N images, each (C, H, W), all of one size.

    Returns:
        A correlation for each image and each of :func:`moves`, (N, M).
    """
    own, theirs = (torch.stack(side) for side in zip(*maps))
    own, theirs = (x - x.mean(0) for x in (own, theirs))
    halves = torch.arange(len(own)) % 2 == 0
    columns = []
    for a, b in _moved(own, theirs):
        found = torch.empty(len(own))
        for fitted in (halves, ~halves):
            found[~fitted] = _correlations(a[fitted], b[fitted], a[~fitted], b[~fitted])
        columns.append(found)
    return torch.stack(columns, 1)


def _mixed(maps: Tensor) -> Tensor:
    """Channels of mean 0 and variance 1, random mixtures where there are many, on the CPU."""
    maps = maps.float()
    maps = maps - maps.mean((0, 2, 3), keepdim=True)
    maps = maps / (maps.pow(2).mean((0, 2, 3), keepdim=True).sqrt() + 1e-6)
    step = max(1, -(-max(maps.shape[2:]) // _SIDE))
    if step > 1:
        maps = nnf.avg_pool2d(maps, step, ceil_mode=True)
    channels = maps.shape[1]
    if channels > _CHANNELS:
        generator = torch.Generator().manual_seed(channels)
        mixture = torch.randn(_CHANNELS, channels, generator=generator) / channels**0.5
        maps = torch.einsum('dc,nchw->ndhw', mixture.to(maps.device), maps)
    return maps.cpu()


def _moved(student: Tensor, teacher: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both maps where they overlap, (N, C, h, w), for each of :func:`moves`."""
    height, width = student.shape[2:]
    flips = {'left and right': [3], 'up and down': [2], 'both': [2, 3]}
    for name, row, column in moves(height, width):
        if name in flips:
            yield student, teacher.flip(flips[name])
            continue
        own, theirs = (
            (slice(max(r, 0), height + min(r, 0)), slice(max(c, 0), width + min(c, 0)))
            for r, c in ((row, column), (-row, -column))
        )
        yield student[:, :, own[0], own[1]], teacher[:, :, theirs[0], theirs[1]]


def _correlations(own: Tensor, theirs: Tensor, own_new: Tensor, theirs_new: Tensor) -> Tensor:
    """Correlation on each new image along the directions in which the old maps agree most.

    These are the first canonical directions of both sides, with a ridge.
    """
    x, y = (_cells(maps).flatten(0, 1) for maps in (own, theirs))
    means = x.mean(0), y.mean(0)
    x, y = x - means[0], y - means[1]
    white = _whitening(x), _whitening(y)
    left, _, right = torch.linalg.svd(white[0].T @ (x.T @ y) @ white[1])
    directions = white[0] @ left[:, 0], white[1] @ right[0]
    a, b = (
        (_cells(maps) - mean) @ direction
        for maps, mean, direction in zip((own_new, theirs_new), means, directions)
    )
    a, b = (values - values.mean(1, keepdim=True) for values in (a, b))
    norms = (a.pow(2).sum(1) * b.pow(2).sum(1)).sqrt()
    return (a * b).sum(1) / norms.clamp(min=1e-12)


def _whitening(values: Tensor) -> Tensor:
    """W such that the columns of ``values @ W`` are uncorrelated, of norm 1."""
    gram = values.T @ values
    gram = gram + _RIDGE * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram))
    return torch.linalg.inv(torch.linalg.cholesky(gram)).T


def _cells(maps: Tensor) -> Tensor:
    """(N, cells, C)."""
    return maps.flatten(2).transpose(1, 2)
