"""What every head is brought to: rows of class logits with their places, labels and boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Boxes:
    """Box outputs of a level, as the head gives them.

    Attributes:
        kind: the parametrisation: ``'deltas'`` (of anchors), ``'ltrb'`` (distances to the four
            sides), ``'dfl'`` (distributions of them), ``'points'``, ``'cxcywh'`` or ``'corners'``.
        raw: the outputs, (N, P, A, D); D is 4, or 4 (r + 1) bins for ``'dfl'``.
        coder: gives corner boxes (N, P, A, 4) in pixels of the batch's images, by the head's own
            coder.
    """

    kind: str
    raw: Tensor
    coder: Callable[[], Tensor]

    def decode(self) -> Tensor:
        """Corner boxes (N, P, A, 4), never in the half precision of a surrounding autocast."""
        with torch.autocast(self.raw.device.type, enabled=False):
            return self.coder()


@dataclass
class Level:
    """One pyramid level, one batch of regions, or one set of queries.

    N images, P positions, A predictions per position (anchors), C columns. ``logits`` is a view of
    the head's own output where strides allow it: nothing is copied before rows are selected.

    Attributes:
        logits: (N, P, A, C), before any activation. RoIs have N = 1; ``images`` tells their image.
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


@dataclass
class Predictions:
    """The class logits of one head (or of one stage or decoder layer) for a batch.

    Attributes:
        label: names the head in messages, such as ``bbox_head``.
        kind: ``'dense'``, ``'roi'``, ``'query'``, ``'pixel'`` or ``'image'``; losses choose their
            default selection by it.
        levels: the levels; student's and teacher's have the same N, P and A.
        activation: ``'sigmoid'`` or ``'softmax'``.
        num_classes: foreground classes. C is ``num_classes``, or one more with a background column,
            which is the last.
        background: whether there is that column.
        context: what the teacher's view needs to follow the student, such as its RoIs.
    """

    label: str
    kind: str
    levels: list[Level]
    activation: str
    num_classes: int
    background: bool = False
    context: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadSpec:
    """What is known of a head (stage, decoder layer) before any image is seen.

    Attributes:
        label: names it in messages.
        kind: as in :class:`Predictions`.
        activation: ``'sigmoid'`` or ``'softmax'``.
        num_classes: foreground classes.
        background: whether the logits have a background column (the last).
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


def map_rows(maps: Tensor) -> Tensor:
    """A map (N, C, H, W) as rows (N, H W, C), without a copy."""
    return maps.flatten(2).transpose(1, 2)
