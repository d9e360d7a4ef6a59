"""Classes that student and teacher share: which columns of their rows are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..class_map import fit_class_map
from ..views import HeadSpec

Columns = tuple[Tensor, Tensor]  # of the student, and those of the teacher that mean the same


class SharedClasses(nn.Module):
    """The class_map of a term, as buffers that move with it and are never saved.

    Args:
        class_map: for each class of the student that of the teacher, or -1.
        spec: one of the student's heads.
        teacher_spec: one of the teacher's.
        in_columns: whether the columns of the rows are classes.

    Attributes:
        class_map: as given, (K,).
        width: how many columns are compared, or None for all.

    Raises:
        TapError: a map that does not fit the heads.
    """

    class_map: Tensor
    own_columns: Tensor
    their_columns: Tensor

    def __init__(
        self,
        class_map: Sequence[int],
        spec: HeadSpec,
        teacher_spec: HeadSpec,
        in_columns: bool,
    ) -> None:
        super().__init__()
        own = theirs = None
        if in_columns:
            own = fit_class_map(class_map, spec.num_classes, teacher_spec.num_classes)
            theirs = [class_map[i] for i in own]
            if spec.background:
                own, theirs = [*own, spec.num_classes], [*theirs, teacher_spec.num_classes]
        self.width = None if own is None else len(own)
        for name, indices in (
            ('class_map', class_map),
            ('own_columns', own),
            ('their_columns', theirs),
        ):
            values = None if indices is None else torch.tensor(indices)
            self.register_buffer(name, values, persistent=False)

    @property
    def columns(self) -> Columns | None:
        """Columns of student and teacher that mean the same; None for all."""
        return None if self.width is None else (self.own_columns, self.their_columns)


def labels_in(
    columns: Tensor, labels: Sequence[Tensor], num_classes: int, background: int
) -> list[Tensor]:
    """Labels of any shape as indices into the compared ``columns`` (C,); -1 for none of them.

    The label ``num_classes`` of the student is the background, which becomes ``background``.
    """
    device = columns.device
    table = torch.full((num_classes + 1,), -1, device=device, dtype=torch.long)
    table = table.scatter(0, columns, torch.arange(len(columns), device=device))
    table[num_classes] = background
    inside = [(x >= 0) & (x <= num_classes) for x in labels]
    return [torch.where(i, table[x.clamp(0, num_classes)], -1) for i, x in zip(inside, labels)]
