"""What losses on rows of a head have in common, whatever a row is: class logits or a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd_plugin.functional.checks import weighted_mean, widen

from .base import DistillLoss
from .old_names import OldNames

KINDS = ('dense', 'roi', 'query', 'pixel', 'image', 'keypoint')  # of heads


def select_by_kind(**others: str | dict) -> dict[str, str | dict]:
    """A selection for every kind of head: those given, and ``'all'`` for the others."""
    return {kind: others.get(kind, 'all') for kind in KINDS}


class RowLoss(OldNames, DistillLoss):
    """A loss between rows of two heads: :class:`LogitLoss` and :class:`BoxLoss` are its kinds.

    A subclass implements :meth:`rows`, or :meth:`compute` if its rows have no values of their own.

    Attributes:
        rows_are: what a row holds, ``'logits'`` or ``'boxes'``; a view says what its rows are.
        needs: what a row comes with beside both tensors, among
            ``'labels'``, ``'features'``, ``'images'`` (which image of the batch a row is from),
            ``'priors'`` (which of the predictions at its position it is), ``'truth'`` (the box of
            the object that the row was assigned to) and ``'scores'`` (the teacher's).
        separable: the value of a row depends on this row alone and on no parameter, so that the
            rows may be computed one part after the other.
        closed_form: a separable loss without extras that knows its gradient, by
            :meth:`values_along` and :meth:`slope_along`; saves whole maps a detour through rows.
        compares_rows: rows are compared with each other, so copies of a row tell nothing;
            formerly ``contrasts``.
        rows_of_image: how many rows each image has, one image behind the other; a term tells it
            for a call where it knows, to losses that need images.
        default_select: which rows a term gives to the loss if it does not say, by the kind of the
            head; see :mod:`mmkd_plugin.terms.selection`.
    """

    rows_are: str
    separable: bool = False
    closed_form: bool = False
    compares_rows: bool = False
    rows_of_image: int | None = None
    default_select: dict[str, str | dict] = select_by_kind()

    def __init__(self) -> None:
        super().__init__()
        self._noted: dict[str, tuple[Tensor, Tensor | None]] = {}

    def connect(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        features_shape: Sequence[int] | None = None,
        priors: int = 1,
    ) -> None:
        """Refuses shapes that :meth:`forward` could not compare, and creates connectors.

        Args:
            student_shape: Shape of the student's rows.
            teacher_shape: Shape of the teacher's rows.
            features_shape: Shape (N, D, ...) of the features, for losses that need them.
            priors: Predictions at a position, such as anchors, which share their features.
        """

    def set_activation(self, activation: str, background: bool = False) -> None:
        """Hears what the head is; a term tells it once.

        Raises:
            ValueError: if the loss cannot compare such rows.
        """

    def _of_rows(
        self, student: Tensor, teacher: Tensor, weights: Tensor | None, extras: dict[str, Tensor]
    ) -> Tensor:
        """The loss of rows (N, C), weighted by ``weights`` (N,), with what :attr:`needs` names."""
        if weights is not None:
            weights = widen(weights.detach())
            # In front of the loss: behind it, a NaN would come back through the gradient, times 0.
            counted = weights != 0  # which NaN is, too: it shall be noticed
            weights, student, teacher = (
                zero_uncounted(x, counted) for x in (weights, student, teacher)
            )
            extras = {name: zero_uncounted(x, counted) for name, x in extras.items()}
            extras['weights'] = weights
        return DistillLoss.forward(self, student, teacher, **extras)

    def _missing(self, name: str, view: str) -> ValueError:
        return ValueError(
            f'{type(self).__name__} needs {name}; call it as loss(student, teacher, '
            f'{name}=...), or tap the view {view!r} in a term, which supplies them.'
        )

    def compute(
        self, student: Tensor, teacher: Tensor, weights: Tensor | None = None, **extras: Tensor
    ) -> Tensor:
        value = weighted_mean(self.rows(student, teacher, **extras), weights)
        for key, (total, amount) in self.take_notes(weights).items():
            self.report[key] = total / torch.where(amount > 0, amount, 1)
        return value

    def rows(self, student: Tensor, teacher: Tensor, **extras: Tensor) -> Tensor:
        """One value per row (N,); ``extras`` are what :attr:`needs` names.

        Diagnostics go through :meth:`note`, which weighs the rows as the loss does.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement rows(student, teacher).')

    def values_along(self, student: Tensor, teacher: Tensor, dim: int) -> Tensor:
        """:meth:`rows` of tensors of any shape with the columns in ``dim``, which stays as 1."""
        raise NotImplementedError

    def slope_along(self, student: Tensor, teacher: Tensor, dim: int, out: Tensor) -> None:
        """Writes the gradient of :meth:`values_along` with respect to the student into ``out``."""
        raise NotImplementedError

    def note(self, key: str, values: Tensor, among: Tensor | None = None) -> None:
        """Reports the mean of ``values`` (N,) over the rows, or those ``among`` (N,) bool."""
        self._noted[key] = values.detach(), among

    def take_notes(self, weights: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        """What was noted since the last call: weighted sums over the rows, and of the weights."""
        notes, self._noted = self._noted, {}
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for key, (values, among) in notes.items():
            share = torch.ones_like(values) if weights is None else weights.to(values.dtype)
            share = share if among is None else share * among
            sums[key] = (values * share).sum(), share.sum()
        return sums

    def __getstate__(self) -> dict:
        return dict(super().__getstate__(), _noted={})


def zero_uncounted(x: Tensor, counted: Tensor) -> Tensor:
    """``x`` (N, ...) with zeros in the rows that do not count, (N,) bool."""
    return torch.where(
        counted.view(-1, *[1] * (x.ndim - 1)), x, torch.zeros((), dtype=x.dtype, device=x.device)
    )
