"""What every head is brought to: rows of class logits with their places, labels and boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Boxes:
    """Box outputs of a level. They are made when somebody reads them: most terms never do.

    Args:
        kind: the parametrisation: ``'deltas'`` (of anchors), ``'ltrb'`` (distances to the four
            sides), ``'dfl'`` (distributions of them), ``'points'``, ``'cxcywh'``, ``'corners'`` or
            ``'cells'`` (YOLOv3).
        raw: the outputs as the head gives them, (N, P, A, D), or a function that makes them; D is
            4, or 4 (r + 1) bins for ``'dfl'``.
        coder: gives corner boxes (N, P, A, 4) in pixels of the batch's images, by the head's own
            coder.
        of_classes: of heads that predict a box for each class: gives those of classes (N, P, A);
            ``raw`` and ``coder`` are then of the best foreground class.
    """

    def __init__(
        self,
        kind: str,
        raw: Tensor | Callable[[], Tensor],
        coder: Callable[[], Tensor],
        of_classes: Callable[[Tensor], Boxes] | None = None,
    ) -> None:
        self.kind = kind
        self._raw = raw
        self.coder = coder
        self.of_classes = of_classes

    @property
    def raw(self) -> Tensor:
        """The outputs, (N, P, A, D)."""
        return self._raw if isinstance(self._raw, Tensor) else self._raw()

    def decode(self) -> Tensor:
        """Corner boxes (N, P, A, 4), never in the half precision of a surrounding autocast."""
        with torch.autocast(self.raw.device.type, enabled=False):
            return self.coder()

    def chosen(self, choose: Callable[[Tensor], Tensor]) -> Boxes:
        """Those that ``choose`` takes out of the boxes (N, P, A, ...) of this level."""
        return Boxes(self.kind, lambda: choose(self.raw), lambda: choose(self.decode()))


@dataclass(frozen=True)
class MaskGrid:
    """Where the masks lie whose pixels are the rows of a level, mask by mask and line by line.

    Attributes:
        windows: (K, 5): image, and corners of the part of the batch's image that a mask covers.
        size: height and width of the masks.
        classes: the class (K,) of each mask's object; None where a head masks all classes alike.
    """

    windows: Tensor
    size: tuple[int, int]
    classes: Tensor | None = None


@dataclass
class Level:
    """One pyramid level, one batch of regions, or one set of queries.

    N images, P positions, A predictions per position (anchors), C columns. ``logits`` is a view of
    the head's own output where strides allow it: nothing is copied before rows are selected.

    Attributes:
        logits: (N, P, A, C), before any activation, or boxes where the view's rows are these. RoIs
            have N = 1; ``images`` tells their image.
        labels: (N, P, A) class indices by the student's own assigner; ``num_classes`` is
            background. Only a student has them, and only in a training step.
        label_weights: (N, P, A), what the student's own loss weighs the labels with; 0 is ignored.
        valid: (N, P, A) bool; False in padding and ignore regions. None is True everywhere.
        quality: (N, P, A) logits of centerness or objectness, where the head has them.
        score: (N, P, A) how much the prediction counts where rows are weighted or ranked by score,
            from 0 to 1; None: the best class's probability, times that of ``quality``.
        features: (N, P, D) what the last classification layer reads, if asked for.
        boxes: box outputs, if the head has them.
        centers: (P, 2) x and y of the positions, in pixels of the batch's images.
        stride: pixels between neighbouring positions.
        images: (N, P) index of the image in the batch; None means that N counts the images.
        anchors: (P, A, 4) corners of what the head's own assigner compares with objects, or
            (N, P, A, 4): anchors, RoIs; None for heads that have but points or queries.
        truth: (N, P, A, 4) corners of the object that the student's head assigned to the
            prediction, if asked for; anything where it assigned none.
        grid: of rows that are pixels of objects' masks.
    """

    logits: Tensor
    labels: Tensor | None = None
    label_weights: Tensor | None = None
    valid: Tensor | None = None
    quality: Tensor | None = None
    score: Tensor | None = None
    features: Tensor | None = None
    boxes: Boxes | None = None
    centers: Tensor | None = None
    stride: int | None = None
    images: Tensor | None = None
    anchors: Tensor | None = None
    truth: Tensor | None = None
    grid: MaskGrid | None = None


@dataclass(frozen=True)
class HeadSpec:
    """What is known of a head (stage, decoder layer) before any image is seen.

    Attributes:
        label: names it in messages.
        kind: ``'dense'``, ``'roi'``, ``'query'``, ``'pixel'``, ``'image'`` or ``'keypoint'``;
            losses choose their default selection by it.
        activation: ``'sigmoid'`` or ``'softmax'``; ``'none'`` of rows that are no logits.
        num_classes: foreground classes. C is ``num_classes``, or one more with a background column.
        background: whether there is that column, which is the last.
        feature_dim: channels D of ``Level.features``; None if there are none.
        priors: A, predictions per position (anchors, the four sides of a box).
    """

    label: str
    kind: str
    activation: str
    num_classes: int
    background: bool = False
    feature_dim: int | None = None
    priors: int = 1

    @property
    def columns(self) -> int:
        """C, the width of a row of logits."""
        return self.num_classes + int(self.background)


class Predictions:
    """The class logits of one head (or of one stage or decoder layer) for a batch.

    ``Predictions('bbox_head', 'dense', levels, 'sigmoid', num_classes)`` says what the head is
    field by field, as :class:`HeadSpec` has them; :meth:`of` takes the spec that is there already.

    Attributes:
        spec: what the head is: ``label``, ``kind``, ``activation``, ``num_classes`` and
            ``background`` can be read from here, too.
        levels: the levels; student's and teacher's have the same N, P and A.
        handover: what a student's view hands over to the teacher's so that its rows become the
            student's, such as the RoIs of this step. The two views agree on its type; None if the
            rows correspond as they are.
        no_labels: why a student in training has no labels, where its view knows.
    """

    def __init__(
        self,
        label: str,
        kind: str,
        levels: list[Level],
        activation: str,
        num_classes: int,
        background: bool = False,
        handover: Any = None,
    ) -> None:
        self.spec = HeadSpec(label, kind, activation, num_classes, background)
        self.levels = levels
        self.handover = handover
        self.no_labels: str | None = None

    @classmethod
    def of(
        cls,
        spec: HeadSpec,
        levels: list[Level],
        handover: Any = None,
        no_labels: str | None = None,
    ) -> Predictions:
        """The logits of the head that a spec describes."""
        made = cls.__new__(cls)
        made.spec, made.levels, made.handover, made.no_labels = spec, levels, handover, no_labels
        return made

    # Written out: the compiler of PyTorch stops at a getter from `operator`, and what follows a
    # stop within no_grad would then get no gradient.
    @property
    def label(self) -> str:
        return self.spec.label

    @property
    def kind(self) -> str:
        return self.spec.kind

    @property
    def activation(self) -> str:
        return self.spec.activation

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    @property
    def background(self) -> bool:
        return self.spec.background

    def __repr__(self) -> str:
        shapes = [tuple(level.logits.shape) for level in self.levels]
        return f'Predictions({self.spec}, levels of {shapes})'


@dataclass(frozen=True)
class PairContext:
    """What a term knows of its pair, for a teacher's view that must ask.

    Attributes:
        columns: columns of student and teacher that mean the same classes; None for all.
        class_map: the teacher's class, or -1, for each class of the student; None if they are the
            same.
        copies: images on the student's maps for one on the teacher's.
        images: images on the student's maps.
    """

    columns: tuple[Tensor, Tensor] | None = None
    class_map: Tensor | None = None
    copies: int = 1
    images: int = 1


ALIKE = PairContext()  # two models of the same classes that see each image once


def map_rows(maps: Tensor) -> Tensor:
    """A map (N, C, H, W) as rows (N, H W, C), without a copy."""
    return maps.flatten(2).transpose(1, 2)
