"""Labels of a dense head's positions, heard from what the head hands to its own losses.

Nothing of a head's target assignment is run again or copied: a new assigner, or a new version of
mmdet, changes the labels here as it changes the head's own loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.compiling import is_compiling
from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .loss_calls import LossCall, loss_calls

# Methods of heads whose losses name no object for a prediction: FSAF, FreeAnchor, AutoAssign,
# CenterNet's second version.
_OTHER_WAYS = (
    'reweight_loss_single',
    'positive_bag_loss',
    'get_pos_loss_single',
    'add_cls_pos_inds',
)
FIRST = 'initial_loss_cls'


@dataclass
class _Rows:
    """One call of a loss: what it predicts (R, C), class indices (R,) and weights (R,) or None."""

    predictions: Tensor
    labels: Tensor
    weights: Tensor | None


class DenseTargets:
    """Listens to ``loss_cls`` (and ``loss_obj``) of a dense head.

    Understood are calls for each level, for each image and for all at once, with class indices,
    with (class indices, quality), or with a target per class (``VFNetHead``), where the class of a
    row is its largest target and rows without one are background. A head with ``loss_obj``
    (``YOLOXHead``) may hand only its positive rows to ``loss_cls``; those are the rows that
    ``loss_obj`` is told to be objects. One with ``initial_loss_cls`` (``TOODHead``) calls that in
    its first epochs. Not served is a head with ``reweight_loss_single``
    (``FSAFHead``), which drops most of its positives after ``loss_cls``.

    Args:
        head: the dense head.
        path: its module path in the model.
    """

    def __init__(self, head: AnyModule, path: str) -> None:
        self.head = f'{path} ({type(head).__name__})'
        self.num_classes = int(head.num_classes)
        self.losses = {'loss_cls': TapPoint(f'{path}.loss_cls', source='input')}
        for name in ('loss_obj', FIRST):
            if isinstance(getattr(head, name, None), nn.Module):
                self.losses[name] = TapPoint(f'{path}.{name}', source='input')
        found = [name for name in _OTHER_WAYS if hasattr(head, name)]
        self.untold: str | None = None  # why its labels are never heard, as far as known before
        if found:
            self.untold = (
                f'{self.head} has losses of its own ({found[0]}), which name no object for a '
                'prediction.'
            )
        self.drops_positives = hasattr(head, 'reweight_loss_single')
        # Whether the rows are those of the maps, by whether there are several images and levels.
        self.matches: dict[bool, bool] = {}

    @property
    def points(self) -> list[TapPoint]:
        return list(self.losses.values())

    def read(
        self, recorder: Recorder, logits: Sequence[Tensor], quality: Sequence[Tensor] | None
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Labels and weights of this step.

        Args:
            recorder: of the student, after its loss.
            logits: class logits (N, P, A, C) of every level.
            quality: objectness logits (N, P, A) of every level, where the head has them.

        Returns:
            For every level the class indices (N, P, A), ``num_classes`` for background, and what
            the head's loss weighs them with (N, P, A), or None where it weighs all alike.

        Raises:
            TapError: ``loss_cls`` was not called, or with something else, or does not tell.
        """
        if self.drops_positives:
            raise TapError(
                f'{self.head} gives its loss_cls every object on all levels and afterwards drops '
                'all but the best (reweight_loss_single), so its labels cannot be heard.'
            )
        shapes = [tuple(level.shape[:3]) for level in logits]
        total = sum(n * p * a for n, p, a in shapes)
        heard = {name: loss_calls(recorder, point) for name, point in self.losses.items()}
        rows = [self._rows(call) for call in heard['loss_cls'] or heard.get(FIRST, [])]
        objects = heard.get('loss_obj', [])
        # PAA and PISA compute losses of some rows first, to choose or weigh their positives.
        rows = [row for row in rows if len(row.labels) == total][-1:] or rows
        if sum(len(row.labels) for row in rows) != total and len(objects) == 1:
            if quality is None or len(rows) > 1:
                raise self._unknown(rows, shapes)
            rows = [self._spread(objects[0], rows, total)]
            first = list(quality)
        else:
            first = [level[..., 0] for level in logits]
        if not rows:
            raise TapError(
                f'{self.head} did not call its loss_cls in this step, so its labels '
                'cannot be heard. Tap a module path instead, or write a view for this head.'
            )
        by_level = self._by_level(rows, first, shapes)
        labels = _arrange([row.labels for row in rows], by_level, shapes)
        if all(row.weights is None for row in rows):
            return [(level, None) for level in labels]
        weights = [
            torch.ones_like(row.labels, dtype=torch.float32) if row.weights is None else row.weights
            for row in rows
        ]
        return list(zip(labels, _arrange(weights, by_level, shapes)))

    def _rows(self, call: LossCall) -> _Rows:
        predictions, target, weight, others = call
        if isinstance(target, (tuple, list)) and target:
            target = target[0]
        known = isinstance(predictions, Tensor) and isinstance(target, Tensor)
        # CenterNet's heat maps, for one, say only together with other tensors what a row is.
        known = known and not any(isinstance(v, Tensor) and v.dim() for v in others.values())
        if known and target.shape == predictions.shape and target.dim() == 2:
            best, index = target[:, : self.num_classes].max(dim=1)
            labels = torch.where(best > 0, index, self.num_classes)
        elif known and target.dim() == 1 and not target.dtype.is_floating_point:
            labels = target.long()
        else:
            raise TapError(
                f'{self.head} gave its loss_cls {_described(predictions)} and as '
                f'target {_described(call.target)}'
                + (f' (and {", ".join(others)})' if others else '')
                + '; known are class indices (rows,), a pair of these and a quality, and a target '
                'per class (rows, classes). Tap a module path instead, or write a view for this '
                'head.'
            )
        if weight is not None and weight.numel() != len(labels):
            weight = weight.reshape(len(labels), -1).amax(dim=1)  # a weight for each class
        return _Rows(predictions, labels, None if weight is None else weight.reshape(-1))

    def _spread(self, call: LossCall, positives: Sequence[_Rows], total: int) -> _Rows:
        """Labels of all rows, where ``loss_cls`` saw only those that ``loss_obj`` calls objects.

        The k-th object gets the k-th label; counting instead of indexing by a mask needs no look
        at the device.
        """
        target = call.target
        if not isinstance(target, Tensor) or target.numel() != total:
            raise TapError(
                f'{self.head} gave its loss_obj as target {_described(target)}, '
                f'but its maps have {total} positions.'
            )
        objects = target.reshape(-1) > 0
        labels = objects.new_full((total,), self.num_classes, dtype=torch.long)
        if positives:
            own = positives[0].labels
            rank = objects.long().cumsum(0).sub_(1).clamp_(0, len(own) - 1)
            labels = torch.where(objects, own[rank], labels)
        return _Rows(call.pred.reshape(total, -1), labels, None)

    def _by_level(
        self, rows: Sequence[_Rows], first: Sequence[Tensor], shapes: Sequence[tuple]
    ) -> bool | Tensor:
        """Whether the rows go level by level, not image by image.

        Sizes say so where there are several calls. Of one call the values do, in every step anew:
        there may be steps, such as one with constant maps, that cannot tell. The answer is a bool
        scalar then, which stays on the device.

        The host looks once whether the rows are those of the maps at all.
        """
        counts = [len(row.labels) for row in rows]
        images = shapes[0][0]
        several = images > 1 and len(shapes) > 1
        per_level = [n * p * a for n, p, a in shapes]
        if counts == per_level:
            likely = [True]
        elif counts == [sum(per_level)]:
            likely = [True, False] if several else [True]
        elif counts == [sum(per_level) // images] * images:
            likely = [False]
        else:
            raise self._unknown(rows, shapes)
        if several not in self.matches and not is_compiling():
            self.matches[several] = any(bool(_agree(rows, first, order)) for order in likely)
        if self.matches.get(several) is False:
            raise TapError(
                f'the rows that {self.head} gave to its loss are not its class maps, '
                'level by level or image by image, so its labels cannot be brought to positions. '
                'Tap a module path instead, or write a view for this head.'
            )
        return likely[0] if len(likely) == 1 else _agree(rows, first, by_level=True)

    def _unknown(self, rows: Sequence[_Rows], shapes: Sequence[tuple]) -> TapError:
        return TapError(
            f'{self.head} gave its loss_cls {[len(row.labels) for row in rows]} '
            f'rows, but its class maps (images, positions, priors) are {shapes}: its labels cannot '
            'be brought to positions. Tap a module path instead, or write a view for this head.'
        )


class PackedTargets:
    """Labels of a head whose ``loss_cls`` and ``loss_conf`` get all predictions of a level, with a
    target for each class and 1 or 0 for each prediction (``YOLOV3Head``).

    The classes of a row count where ``loss_cls`` weighs it; all others are background. What
    ``loss_conf`` leaves out (boxes that overlap an object and are not responsible) has no weight.

    Args:
        head: the dense head.
        path: its module path in the model.
    """

    def __init__(self, head: AnyModule, path: str) -> None:
        self.head = f'{path} ({type(head).__name__})'
        self.num_classes = int(head.num_classes)
        self.points = [TapPoint(f'{path}.{n}', source='input') for n in ('loss_cls', 'loss_conf')]
        self.untold: str | None = None

    def read(
        self, recorder: Recorder, logits: Sequence[Tensor], quality: Sequence[Tensor] | None
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Labels and weights of this step; the arguments are those of :class:`DenseTargets`."""
        classes, objects = (loss_calls(recorder, point) for point in self.points)
        shapes = [tuple(level.shape) for level in logits]
        flat = [(n, p * a, c) for n, p, a, c in shapes]
        seen = [[tuple(call.pred.shape) for call in calls] for calls in (classes, objects)]
        if seen != [flat, [shape[:2] for shape in flat]]:
            raise TapError(
                f'{self.head} gave its loss_cls and loss_conf {seen[0]} and {seen[1]}; known are '
                f'calls for each level with {flat} and one number for each of these rows. Use a '
                'loss without labels, such as KDLoss.'
            )
        found: list[tuple[Tensor, Tensor | None]] = []
        for label, conf, shape in zip(classes, objects, shapes):
            assert label.weight is not None and conf.weight is not None
            best = label.target.argmax(-1)
            labels = torch.where(label.weight.squeeze(-1) > 0, best, self.num_classes)
            found.append((labels.reshape(shape[:3]), conf.weight.reshape(shape[:3])))
        return found


def _arrange(
    rows: Sequence[Tensor], by_level: bool | Tensor, shapes: Sequence[tuple]
) -> list[Tensor]:
    """Rows (R,) of all calls as (N, P, A) for each level."""
    flat = rows[0] if len(rows) == 1 else torch.cat(list(rows))
    if isinstance(by_level, Tensor):
        both = (_arrange([flat], order, shapes) for order in (True, False))
        return [torch.where(by_level, yes, no) for yes, no in zip(*both)]
    if by_level:
        parts = flat.split([n * p * a for n, p, a in shapes])
    else:
        parts = flat.view(shapes[0][0], -1).split([p * a for _, p, a in shapes], dim=1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]


def _agree(rows: Sequence[_Rows], first: Sequence[Tensor], by_level: bool) -> Tensor:
    """Whether the first column of the rows is that of the maps in this order; a bool scalar."""
    seen = torch.cat([row.predictions.detach()[:, 0] for row in rows])
    if by_level:
        own = torch.cat([level.detach().reshape(-1) for level in first])
    else:
        own = torch.cat([level.detach().flatten(1) for level in first], dim=1).flatten()
    return torch.isclose(seen, own.to(seen.dtype), rtol=0, atol=0, equal_nan=True).all()


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'{tuple(value.shape)} of {value.dtype}'
    if isinstance(value, (tuple, list)):
        return f'a {type(value).__name__} of ' + ', '.join(_described(item) for item in value)
    return f'{type(value).__name__}'
