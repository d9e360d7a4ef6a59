"""Class and mask logits of heads that give each cell of a grid a mask (SOLO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ..class_map import fit_class_map
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .base import LogitView, other_kind
from .dense_geometry import ignored_boxes
from .loss_calls import loss_calls
from .predictions import ALIKE, HeadSpec, Level, MaskGrid, PairContext, Predictions, map_rows

MASKS = HeadSpec('mask_head', 'pixel', 'sigmoid', num_classes=1)


@dataclass(frozen=True)
class Cells:
    """The cells with a mask that a student hands over, each a list with an entry for each grid.

    Attributes:
        cells: images and positions of the cells, each (K,).
        classes: the student's class (K,) of each.
        sizes: height and width of the student's masks.
    """

    cells: list[tuple[Tensor, ...]]
    classes: list[Tensor]
    sizes: list[tuple[int, int]]


class _GridView(LogitView):
    """What the views on grids share: the grids, and the labels of their cells."""

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        head = model.mask_head
        self.needs = tuple(needs)
        self.grids = tuple(head.num_grids)
        self.num_classes = head.num_classes
        self.cells = TapPoint('mask_head.loss_cls', source='input')

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, 'mask_head', None)
        return hasattr(head, 'num_grids') and isinstance(getattr(head, 'conv_cls', None), nn.Module)

    def check_pair(
        self,
        student: LogitView,
        models: tuple[AnyModule, AnyModule],
        class_map: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(student, type(self)):
            raise other_kind(models, 'predicts on grids')
        if student.grids != self.grids:
            raise TapError(
                f'the grids of the student are {list(student.grids)}, those of the '
                f'teacher {list(self.grids)}: their cells do not correspond. Give both the same '
                'mask_head.num_grids, or distil features.'
            )
        if class_map is not None:
            fit_class_map(class_map, student.num_classes, self.num_classes)

    def labels(self, recorder: Recorder, images: int) -> list[Tensor]:
        """Class indices (N, S * S) of each level's cells; ``num_classes`` is background."""
        calls = loss_calls(recorder, self.cells)
        if len(calls) != 1:
            raise TapError(
                f'{self.cells.path!r} was called {len(calls)} times in this step; '
                'the labels of the grids come from its only call.'
            )
        sizes = [images * grid**2 for grid in self.grids]
        return [part.reshape(images, -1) for part in calls[0].target.split(sizes)]


class GridLogits(_GridView):
    """The class logits of every cell, (N, S * S, 1, C), one level for each grid.

    Cells whose middle lies in padding or in an ignore region are not valid. Serves SOLO, Decoupled
    SOLO and SOLOv2, whose ``conv_cls`` is one layer for all grids. Nothing here waits for the
    device.
    """

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        super().__init__(model, needs)
        head = model.mask_head
        self.spec = HeadSpec(
            label='mask_head.conv_cls',
            kind='dense',
            activation='sigmoid' if head.loss_cls.use_sigmoid else 'softmax',
            num_classes=head.num_classes,
            background=head.cls_out_channels > head.num_classes,
            feature_dim=head.feat_channels,
        )
        self.logits = TapPoint('mask_head.conv_cls')
        self.features = TapPoint('mask_head.conv_cls', source='input')
        self.points = [self.logits, self.cells]
        if 'features' in self.needs:
            self.points.append(self.features)

    @property
    def teacher_points(self) -> list[TapPoint]:
        return [self.logits]

    def read(
        self, recorder: Recorder, data_samples: Any, student: list[Predictions] | None = None
    ) -> list[Predictions]:
        maps = recorder.raw(self.logits)
        if len(maps) != len(self.grids):
            raise TapError(
                f'{self.logits.path!r} was called {len(maps)} times in this step, '
                f'but there are {len(self.grids)} grids.'
            )
        levels = [Level(map_rows(x).unsqueeze(2)) for x in maps]
        if not student:
            for level, x, labels in zip(levels, maps, self.labels(recorder, len(maps[0]))):
                level.labels = labels.unsqueeze(-1)
                level.valid = valid_cells(x, data_samples).reshape(level.labels.shape)
                level.centers = cell_centers(x, data_samples)
        if 'features' in self.needs and not student:
            for level, (args, _) in zip(levels, recorder.raw(self.features)):
                level.features = map_rows(args[0])
        return [Predictions.of(self.spec, levels)]


class GridMasks(_GridView):
    """The mask logits of the cells that the student's own targets made positive.

    Rows are pixels: (1, positive cells * h * w, 1, 1), one level for each grid, without a copy of
    what the student hands to its own mask loss. Label 0 is inside of the mask, 1 outside of it;
    padding is not valid. The teacher's masks are those of the same cells, resized bilinearly if
    theirs are of another size; under a class_map those of a class that it does not know are not
    valid. Serves SOLO; how many rows there are depends on the images, so that the step waits for
    the device once per grid, as SOLO's own targets do for every object.
    """

    of_classes = False
    of_masks = True

    def __init__(self, model: AnyModule, needs: Sequence[str]) -> None:
        super().__init__(model, needs)
        head = model.mask_head
        if not hasattr(head, 'conv_mask_list'):
            raise TapError(
                f'{type(head).__name__} has no mask logits for each cell of its grids '
                '(it multiplies two probabilities, or makes masks by kernels for cells in an order '
                "of its own). Distil its classes (student='cls_logits') or features."
            )
        refuse_features(needs)
        self.maps = [TapPoint(f'mask_head.conv_mask_list.{i}') for i in range(len(self.grids))]
        self.losses = TapPoint('mask_head.loss_mask', source='input')
        self.points = [*self.maps, self.cells, self.losses]

    @property
    def teacher_points(self) -> list[TapPoint]:
        return self.maps

    def specs(self, model: AnyModule) -> list[HeadSpec]:
        return [MASKS]

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        maps = [c.tensor for c in recorder.read(self.maps)]
        if len(maps) != len(self.grids):
            raise TapError(
                f'the layers mask_head.conv_mask_list were called {len(maps)} times '
                f'in this step, but there are {len(self.grids)} grids.'
            )
        if student:
            return [Predictions.of(MASKS, self._of_cells(maps, student[0].handover, pair))]
        labels = self.labels(recorder, len(maps[0]))
        cells = [(x < self.num_classes).nonzero(as_tuple=True) for x in labels]
        levels = self._own_levels(recorder, maps, cells, data_samples)
        classes = [x[own] for x, own in zip(labels, cells)]
        for level, x, (images, _), own in zip(levels, maps, cells, classes):
            level.grid = whole_images(images, x.shape[-2:], own, data_samples)
        handover = Cells(cells, classes, [(x.shape[-2], x.shape[-1]) for x in maps])
        return [Predictions.of(MASKS, levels, handover)]

    def _of_cells(self, maps: list[Tensor], student: Cells, pair: PairContext) -> list[Level]:
        """The teacher's masks of the student's cells."""
        return [
            Level(mask_rows(x[cells], size), valid=known_rows(classes, pair.class_map, size))
            for x, cells, classes, size in zip(maps, student.cells, student.classes, student.sizes)
        ]

    def _own_levels(
        self, recorder: Recorder, maps: list[Tensor], cells: list[tuple], data_samples: Any
    ) -> list[Level]:
        calls = iter(loss_calls(recorder, self.losses))
        levels = []
        for own, (images, positions) in zip(maps, cells):
            if not len(positions):  # the head calls no loss
                levels.append(Level(mask_rows(own[:0, 0])))
                levels[-1].labels = levels[-1].logits.new_zeros(1, 0, 1, dtype=torch.long)
                levels[-1].images = levels[-1].labels[..., 0]
                continue
            call = next(calls, None)
            if call is None or call.pred.shape != (len(positions), *own.shape[-2:]):
                got = 'no more masks' if call is None else f'masks {tuple(call.pred.shape)}'
                raise TapError(
                    f'{self.losses.path!r} got {got} where the labels of the '
                    f'grid name {len(positions)} positive cells of size {tuple(own.shape[-2:])}.'
                )
            levels.append(mask_level(call.pred, call.target, images, data_samples))
        return levels


def mask_level(masks: Tensor, targets: Tensor, images: Tensor, data_samples: Any) -> Level:
    """A student's masks as a level.

    Args:
        masks: logits (K, h, w).
        targets: (K, h, w), 1 inside of the object.
        images: index (K,) of each mask's image.
        data_samples: those of the batch, for the padding.

    Returns:
        Rows (1, K h w, 1, 1) with labels, images and validity.
    """
    pixels = masks.shape[-2] * masks.shape[-1]
    inside = targets.reshape(1, -1, 1) > 0.5
    return Level(
        mask_rows(masks),
        labels=torch.where(inside, 0, 1),
        valid=_unpadded(masks, data_samples)[images].reshape(1, -1, 1),
        images=images.repeat_interleave(pixels, output_size=len(masks) * pixels)[None],
    )


def whole_images(
    images: Tensor, size: Sequence[int], classes: Tensor, data_samples: Any
) -> MaskGrid:
    """The grid of masks that cover the batch's images, padding included.

    Args:
        images: index (K,) of each mask's image.
        size: height and width of the masks.
        classes: of their objects, (K,).
        data_samples: those of the batch.
    """
    height, width = data_samples[0].batch_input_shape
    corners = torch.tensor([0.0, 0.0, width, height]).to(images.device, non_blocking=True)
    windows = torch.cat([images[:, None].to(corners), corners.expand(len(images), -1)], dim=1)
    return MaskGrid(windows, (size[0], size[1]), classes)


def mask_rows(masks: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Masks (K, h, w) as rows (1, K h w, 1, 1); resized bilinearly to ``size``, if given."""
    if size is not None and tuple(masks.shape[-2:]) != tuple(size):
        if len(masks):
            masks = nnf.interpolate(masks[:, None], size=tuple(size), mode='bilinear')
        else:
            masks = masks.new_zeros(0, *size)
    return masks.reshape(1, -1, 1, 1)


def known_rows(classes: Tensor, table: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """Whether the teacher knows the class (K,) of each row's mask of a size (h, w), (1, K h w, 1).

    ``table`` is the class_map; None, for which all classes are known, gives None.
    """
    if table is None:
        return None
    return of_pixels(table[classes] >= 0, size)


def of_pixels(values: Tensor, size: Sequence[int]) -> Tensor:
    """Values (K,) of masks as those of their pixels' rows, (1, K h w, 1)."""
    return values.repeat_interleave(size[0] * size[1]).reshape(1, -1, 1)


def refuse_features(needs: Sequence[str]) -> None:
    """Refuses a loss that trains on features: pixels of a mask have none.

    Raises:
        TapError: if the loss needs them.
    """
    if 'features' in needs:
        raise TapError(
            "the loss trains a classifier on features, which the view 'mask_logits' "
            'does not have. Use KDLoss on masks.'
        )


def _unpadded(maps: Tensor, data_samples: Any) -> Tensor:
    """Whether the middle of each pixel lies in its image, (N, h, w) on a map of the batch."""
    inside = []
    for sample in data_samples:
        y, x = _middles(maps, sample)
        inside.append((y < sample.img_shape[0]) & (x < sample.img_shape[1]))
    return torch.stack(inside)


def valid_cells(maps: Tensor, data_samples: Any) -> Tensor:
    """Whether the middle of each cell lies in its image and no ignore region, (N, S, S)."""
    valid = _unpadded(maps, data_samples)
    for own, sample in zip(valid, data_samples):
        boxes = ignored_boxes(sample)
        if boxes is not None:
            y, x = (middle.unsqueeze(-1) for middle in _middles(maps, sample))
            left, top, right, bottom = boxes.to(maps.device).unbind(1)
            covered = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
            own &= ~covered.any(-1)
    return valid


def cell_centers(maps: Tensor, data_samples: Any) -> Tensor:
    """x and y (P, 2) of the middles of a map's cells, row by row, in pixels of the batch."""
    y, x = _middles(maps, data_samples[0])
    return torch.stack(torch.broadcast_tensors(x, y), dim=-1).flatten(0, 1)


def _middles(maps: Tensor, sample: Any) -> tuple[Tensor, Tensor]:
    """y (h, 1) and x (w,) of the middles of a map's pixels, in pixels of the batch's images."""
    y, x = (
        (torch.arange(size, device=maps.device) + 0.5) * (pixels / size)
        for size, pixels in zip(maps.shape[-2:], sample.batch_input_shape)
    )
    return y[:, None], x
