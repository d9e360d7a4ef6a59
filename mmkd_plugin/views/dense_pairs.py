"""Which predictions of two dense heads belong together: levels by stride, positions by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..taps import TapError
from ..taps.foreign import AnyModule
from ..taps.strides import matching
from .dense_geometry import level_strides
from .predictions import Level

BY_BOXES = "Let the teacher's boxes speak instead: teacher='detections'."


@dataclass(frozen=True)
class Grid:
    """Where a dense head predicts, level by level.

    Attributes:
        name: of the head, for messages.
        strides: pixels between neighbouring positions.
        priors: predictions at a position.
        anchors: corners of the anchors around the first position, as numbers; None without.
    """

    name: str
    strides: tuple[int, ...]
    priors: tuple[int, ...]
    anchors: tuple

    @classmethod
    def of(cls, head: AnyModule, name: str) -> Grid:
        """Reads it from the head's ``prior_generator``."""
        strides, anchors = level_strides(head), getattr(head.prior_generator, 'base_anchors', None)
        corners = (None,) * len(strides) if anchors is None else tuple(map(_corners, anchors))
        return cls(name, strides, tuple(head.prior_generator.num_base_priors), corners)

    def matches(self, strides: Sequence[int | None]) -> list[int]:
        """The teacher's level for each of the student's, which :meth:`check` has found."""
        return [i for i in matching(strides, self.strides) if i is not None]

    def check(self, student: Grid, activation: str) -> None:
        """Refuses a student whose predictions have no partners among the teacher's.

        Raises:
            TapError: a stride that the teacher lacks, or numbers of anchors, or anchors, that
                differ; several may teach one, unless a softmax is taken over their columns.
        """
        self._check_strides(student)
        for own, i in enumerate(self.matches(student.strides)):
            counts = student.priors[own], self.priors[i]
            at = f'at stride {student.strides[own]}'
            if counts[0] == 1 and counts[1] > 1:
                if activation == 'softmax':
                    raise TapError(
                        f'{self.name} has {counts[1]} anchors per position {at} and '
                        f'{student.name} one; softmax logits of several anchors have no maximum. '
                        f'{BY_BOXES}'
                    )
            elif counts[0] != counts[1]:
                raise TapError(
                    f'{student.name} has {counts[0]} anchors per position {at}, the teacher, '
                    f'{self.name}, {counts[1]}: which belongs to which cannot be said. {BY_BOXES}',
                    student_anchors=counts[0],
                    teacher_anchors=counts[1],
                )
            elif counts[0] > 1 and student.anchors[own] != self.anchors[i]:
                raise TapError(
                    f'the anchors {at} differ: {student.name} has {student.anchors[own]}, the '
                    f'teacher, {self.name}, {self.anchors[i]} (corners around a position, in '
                    f'pixels). Give both the same anchor_generator. {BY_BOXES}'
                )

    def _check_strides(self, student: Grid) -> None:
        found = matching(student.strides, self.strides)
        missing = [stride for stride, i in zip(student.strides, found) if i is None]
        if missing:
            raise TapError(
                f'the levels of {student.name} have strides {list(student.strides)}, those of the '
                f'teacher, {self.name}, {list(self.strides)}: it has none of stride '
                f'{", ".join(map(str, missing))} to learn from. {BY_BOXES}',
                student_strides=list(student.strides),
                teacher_strides=list(self.strides),
            )

    def aligned(self, own: Level, level: Level) -> Level:
        """A teacher's level in the shape of the student's."""
        shapes = tuple(own.logits.shape[:3]), tuple(level.logits.shape[:3])
        if shapes[0][:2] != shapes[1][:2]:
            raise TapError(
                f'at stride {own.stride} the student has {shapes[0]} (images, '
                f'positions, priors), the teacher, {self.name}, {shapes[1]}: their maps must be '
                f'of one size. {BY_BOXES}'
            )
        return level if shapes[0] == shapes[1] else _best_prior(level)


def _best_prior(level: Level) -> Level:
    """Reduces the predictions at a position to one: the largest logit of each class; box and
    quality of the one with the best class."""

    def chosen(values: Tensor) -> Tensor:
        best = level.logits.amax(-1).argmax(2, keepdim=True)
        return values.gather(2, best.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1]))

    reduced = Level(
        logits=level.logits.amax(2, keepdim=True), centers=level.centers, stride=level.stride
    )
    if level.quality is not None:
        reduced.quality = chosen(level.quality.unsqueeze(-1)).squeeze(-1)
    if level.boxes is not None:
        reduced.boxes = level.boxes.chosen(chosen)
    return reduced


def _corners(anchors: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(v), 3) for v in anchor) for anchor in anchors)
