"""Distillation of boxes: the student's box of a row moves towards the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.functional.checks import check_choice, check_number
from mmkd_plugin.registry import MODELS

from .row_base import RowLoss, select_by_kind, zero_uncounted

DISTANCES = ('giou', 'diou', 'l1', 'both')
WHEN = ('teacher_closer', 'always')
WEIGHTS = ('score', 'iou', None)
_LEAST_SIDE = 1e-3  # pixels; a smaller box of the teacher's is none


class BoxLoss(RowLoss):
    """A loss on boxes: rows (N, 4) of corners x1, y1, x2, y2, in pixels of the batch's images.

    A subclass implements :meth:`rows`. The view ``'boxes'`` supplies the rows, and what
    :attr:`needs` names: ``'truth'``, the box (N, 4) of the object that the student's own head
    assigned to the row, and ``'scores'`` (N,), how sure the teacher is of an object there.
    """

    rows_are = 'boxes'
    separable = True

    def connect(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        features_shape: Sequence[int] | None = None,
        priors: int = 1,
    ) -> None:
        """Refuses shapes that are no rows of boxes.

        Raises:
            ValueError: if a shape is not (N, 4).
        """
        for owner, shape in (('student', student_shape), ('teacher', teacher_shape)):
            if len(shape) != 2 or shape[1] != 4:
                raise ValueError(
                    f'{type(self).__name__} compares boxes (N, 4), but the {owner} tensor has '
                    f'shape {tuple(shape)}.'
                )

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        truth: Tensor | None = None,
        scores: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Returns the scalar loss: the mean over the rows, weighted where weights are given.

        Args:
            student: Corners (N, 4).
            teacher: Corners (N, 4).
            truth: Corners (N, 4) of the rows' objects, for losses that need them.
            scores: How sure the teacher is (N,), for losses that need it.
            weights: How much each row counts, at least 0, (N,). Rows of weight 0 have no influence
                whatever they hold, NaN included; with no other row the loss is 0.

        Raises:
            ValueError: if the shapes do not belong together, or something is missing.
        """
        BoxLoss.connect(self, student.shape, teacher.shape)
        given = dict(truth=truth, scores=scores)
        extras: dict[str, Tensor] = {}
        for name in self.needs:
            value = given[name]
            if value is None:
                raise self._missing(name, 'boxes')
            extras[name] = value
        for name, value in {**extras, 'teacher': teacher, 'weights': weights}.items():
            wanted = (len(student), 4) if name in ('teacher', 'truth') else (len(student),)
            if value is not None and tuple(value.shape) != wanted:
                raise ValueError(
                    f'{type(self).__name__}: {name} must have shape {wanted} beside '
                    f'{len(student)} boxes of the student, got {tuple(value.shape)}.'
                )
        return self._of_rows(student, teacher, weights, extras)


@MODELS.register_module()
class BoxDistillLoss(BoxLoss):
    r"""Boxes of the teacher as targets, where they are better than the student's.

    .. math:: L = \frac1N \sum_n g_n\, w_n\, d(s_n, t_n), \qquad
        g_n = \big[\mathrm{IoU}(t_n, y_n) > \mathrm{IoU}(s_n, y_n) + m\big]

    over the rows that have an object :math:`y_n`. The distance :math:`d` is one minus the GIoU, the
    L1 distance of the sides in units of the teacher's box, or the sum of both. The gate
    :math:`g_n` lets a teacher that is further off than the student teach nothing, so that the term
    fades out by itself. The mean is over all rows, those behind a closed gate included.

    Does not couple the samples of a batch. Has no parameters. Needs the truth of each row for the
    gate, none with ``when='always'``. Reports ``closer``, the share of rows with an open gate.

    Args:
        kind: ``'giou'`` (default, recommended: no size of box counts more), ``'diou'``, ``'l1'``,
            or ``'both'``, the sum of GIoU and L1.
        when: ``'teacher_closer'`` (default) opens the gate :math:`g_n` only where the teacher is
            nearer to the truth. ``'always'`` has no gate and needs no labels; on dense heads a term
            then compares the rows of which the teacher is surest.
        weight: :math:`w_n`: ``'score'`` (default, recommended), how sure the teacher is of an
            object there; ``'iou'``, the IoU of its box and the truth; None weighs all alike.
        beta: From which distance on the L1 is linear, in units of the teacher's box; 0 (default) is
            plain L1.
        margin: :math:`m`, by how much the teacher's IoU must be larger. Default 0.001, above what
            rounding makes of equal boxes.

    Shape:
        - student, teacher: (N, 4), corners in pixels
        - truth: (N, 4)
        - scores: (N,)
        - output: ()

    Example:
        >>> import torch
        >>> truth = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
        >>> teacher = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 20]])
        >>> student = torch.tensor([[0.0, 0, 10, 18], [0, 0, 10, 12]])
        >>> loss = BoxDistillLoss(weight=None)  # only the first of two rows is taught
        >>> value = loss(student, teacher, truth=truth)
        >>> print(f'{value.item():.2f}, {loss.report["closer"].item()}')
        0.25, 0.5
    """

    needs: tuple[str, ...] = ('truth', 'scores')
    report_keys = ('closer',)

    def __init__(
        self,
        kind: str = 'giou',
        when: str = 'teacher_closer',
        weight: str | None = 'score',
        beta: float = 0.0,
        margin: float = 0.001,
    ) -> None:
        super().__init__()
        check_choice('kind', kind, DISTANCES)
        check_choice('when', when, WHEN)
        _check_weight(weight, when)
        check_number('beta', beta, 0)
        check_number('margin', margin, 0, 1)
        self.kind = kind
        self.when = when
        self.weight = weight
        self.beta = beta
        self.margin = margin
        self.gated = when == 'teacher_closer'
        self.needs = tuple(
            name
            for name, wanted in (
                ('truth', when == 'teacher_closer' or weight == 'iou'),
                ('scores', weight == 'score'),
            )
            if wanted
        )
        # Rows without an object have no truth; without labels the teacher says what is one.
        by_label = 'truth' in self.needs
        surest = dict(by='teacher_topk', k=512)
        self.default_select = select_by_kind(
            dense='positive' if by_label else surest,
            roi='positive' if by_label else 'all',
            query='positive' if by_label else 'all',
        )

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        truth: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        taught = ~((teacher[:, 2:] - teacher[:, :2]) < _LEAST_SIDE).any(1)
        if self.when == 'teacher_closer':
            assert truth is not None
            closer = F.closer_to(truth, teacher, student, self.margin)
            taught = taught & closer
            self.note('closer', taught.float())
        # In front of the distance: behind it, an infinite box would come back as NaN, times 0.
        student, teacher = zero_uncounted(student, taught), zero_uncounted(teacher, taught)
        values = self._distance(student, teacher)
        if self.weight == 'score':
            assert scores is not None
            values = values * scores.detach().to(values.dtype)
        elif self.weight == 'iou':
            assert truth is not None
            values = values * F.box_iou(teacher, truth).to(values.dtype)
        return torch.where(taught, values, torch.zeros_like(values))

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One distance per row (N,)."""
        if self.kind == 'diou':
            return F.diou_loss(student, teacher, reduction='none')
        parts = []
        if self.kind in ('giou', 'both'):
            parts.append(F.giou_loss(student, teacher, reduction='none'))
        if self.kind in ('l1', 'both'):
            parts.append(F.box_l1(student, teacher, beta=self.beta, reduction='none'))
        return torch.stack(parts).sum(0)


def _check_weight(weight: str | None, when: str) -> None:
    """Refuses a weight that there is not, and one that contradicts ``when``."""
    if weight is not None:
        check_choice('weight', weight, WEIGHTS[:2])
    if weight == 'iou' and when == 'always':
        raise ValueError(
            "weight='iou' is the teacher's IoU with the truth, and when='always' does without "
            "truth. Take weight='score' or None, or when='teacher_closer'."
        )
