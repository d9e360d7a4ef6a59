"""Class logits of dense heads that give box, objectness and classes of a prediction in one map."""

from __future__ import annotations

from torch import Tensor, nn

from ..taps import Recorder
from ..taps.foreign import AnyModule
from ..taps.partial_forward import takes_features
from .dense import HEAD, DenseLogits
from .dense_targets import PackedTargets

BOX = 4  # channels of a prediction in front of its objectness, which comes before the classes


class PackedLogits(DenseLogits):
    """Class logits (N, P, A, C) of a head with maps (N, A (5 + C), H, W): YOLOv3.

    Objectness is the quality of a row. Labels and weights are those that ``loss_cls`` and
    ``loss_conf`` get.
    """

    def _columns(self, head: AnyModule) -> int:
        return head.num_classes

    def _targets(self, head: AnyModule) -> PackedTargets:
        return PackedTargets(head, HEAD)

    @classmethod
    def fits(cls, model: AnyModule) -> bool:
        head = getattr(model, HEAD, None)
        return (
            isinstance(head, nn.Module)
            and getattr(head, 'num_attrib', None) == BOX + 1 + getattr(head, 'num_classes', 0)
            and all(hasattr(head, name) for name in ('loss_cls', 'loss_conf', 'prior_generator'))
            and takes_features(model, HEAD)
        )

    def _outputs(self, recorder: Recorder, head: AnyModule) -> list[list[Tensor]]:
        """A list for each kind of output, with a map for every level; the first are the classes."""
        maps = [capture.tensor for capture in recorder.read([self.output])]
        sizes = [BOX, 1, self.columns]
        groups: list[list[Tensor]] = [[], [], []]
        for packed, priors in zip(maps, self.grid.priors):
            parts = packed.unflatten(1, (priors, -1)).split(sizes, dim=2)
            for group, part in zip(groups, parts):
                group.append(part.flatten(1, 2))
        boxes, objectness, classes = groups
        return [classes, boxes, objectness]
