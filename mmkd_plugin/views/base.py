"""The contract of a view."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..checks import carry_old_names
from ..taps import Recorder, TapError, TapPoint
from .predictions import ALIKE, HeadSpec, PairContext, Predictions


class View:
    """Reads what a recorder saw in one step. Its two kinds are :class:`LogitView` and
    :class:`TapView`.

    Attributes:
        points: module inputs and outputs that the recorder must keep.
        within: where the body that the view reads lies in the model; empty if it is the model.
    """

    points: list[TapPoint]
    within: str = ''

    @property
    def teacher_points(self) -> list[TapPoint]:
        """What the recorder must keep where the view serves as the teacher's; ``points`` if a view
        does not say otherwise. A teacher runs no deeper than these, and computes no losses."""
        return self.points

    def heard(self, teacher: bool = False) -> list[TapPoint]:
        """``points`` or ``teacher_points`` as paths of the whole model."""
        points = self.teacher_points if teacher else self.points
        if not self.within:
            return points
        return [replace(point, path=f'{self.within}.{point.path}') for point in points]

    def compares_classes(self, model: nn.Module) -> bool:
        """Whether a term on the student's view compares classes, which both models must share."""
        raise NotImplementedError


class LogitView(View):
    """Reads the logits of one kind of head as :class:`Predictions`.

    A subclass says by :meth:`fits` which models it understands, names in its constructor the
    ``points`` to listen at, tells by :meth:`specs` what it will give, and gives it in :meth:`read`.
    It keeps no reference to the model: a deep copy of the student copies its views. Where a view
    serves as the teacher's, :meth:`read` also brings the rows into the student's order.

    Args:
        model: the model to look at.
        needs: what the loss wants beside the logits, such as ``'features'``. Whoever calls a view
            puts the config entry in front of what it refuses; one that asks for it gets its name
            as a third argument.

    Attributes:
        spec: what the one head that is read will give, see :meth:`specs`.
        teacher_only: True for a view that reads a teacher only, and brings any head to the
            student's activation and number of Predictions; formerly ``follows``.
        rows_are: ``'logits'`` or ``'boxes'``, what a loss must be able to compare.
        of_classes: False where columns are no classes (bins of distances): a class_map then leaves
            them as they are.
        of_masks: True if rows are pixels of the masks of objects; a student's levels then have a
            ``grid``.
        boxed: False for rows that no box of a detection can teach (corners of objects).
        repeats: True for a view that brings a teacher's rows also to a student whose maps hold each
            image several times (TridentNet's branches).
        default_select: which rows a term compares if it does not say, for all kinds of heads or by
            the kind of the student's; None leaves it to the loss.
    """

    teacher_only: bool = False
    rows_are: str = 'logits'
    of_classes: bool = True
    of_masks: bool = False
    boxed: bool = True
    repeats: bool = False
    default_select: str | dict[str, str] | None = None
    spec: HeadSpec

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        carry_old_names(cls, follows='teacher_only')

    def __init__(self, model: nn.Module, needs: Sequence[str]) -> None:
        raise NotImplementedError

    @property
    def follows(self) -> bool:
        """The old name of ``teacher_only``."""
        return self.teacher_only

    def compares_classes(self, model: nn.Module) -> bool:
        return True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether this view understands ``model``: by what it has, not by its class."""
        raise NotImplementedError

    @classmethod
    def gives_boxes(cls, model: nn.Module) -> bool:  # noqa: ARG003 -- a view overrides it
        """Whether the levels of a model that it fits have ``boxes``, so that the view ``'boxes'``
        can read these."""
        return False

    def no_truth(self) -> str | None:
        """Why a student's rows will never have labels, in a sentence; None where they will."""
        return None

    def specs(self, model: nn.Module) -> list[HeadSpec]:
        """One for each of the Predictions that :meth:`read` will give; runs no forward."""
        return [self.spec]

    def check_pair(
        self,
        student: LogitView,
        models: tuple[nn.Module, nn.Module],
        class_map: Sequence[int] | None = None,
    ) -> None:
        """Refuses, before training, a student whose order of rows this teacher's view cannot take.

        Called on the teacher's view. Activations, numbers of classes and of Predictions have been
        compared already; a view overrides this for what else must fit, such as strides.

        Args:
            student: the student's view.
            models: student and teacher.
            class_map: the teacher's class, or -1, for each of the student's; None if the classes
                are the same. A view that does not ask for it leaves it out.

        Raises:
            TapError: saying what differs and what to do.
        """

    def check_loss(self, loss: nn.Module) -> None:
        """Refuses, on the teacher's view, a loss that learns nothing from such rows.

        Raises:
            TapError: saying why and what to take.
        """

    def read(
        self,
        recorder: Recorder,
        data_samples: Any,
        student: list[Predictions] | None = None,
        pair: PairContext = ALIKE,
    ) -> list[Predictions]:
        """What the heads said in this step.

        Args:
            recorder: of the view's model, after its forward; ``recorder.model`` is the model.
            data_samples: those of the batch.
            student: None for the student's own view, which gives labels. A teacher's view gets the
                student's predictions and gives rows in their order: the same number of Predictions,
                each with levels of the same (N, P, A). It is called without gradient.
            pair: what the term tells the teacher's view, such as the classes that both models
                share. A view that does not ask for it leaves it out.

        Raises:
            TapError: rows that cannot be brought to the student's.
        """
        raise NotImplementedError


def other_kind(models: tuple[nn.Module, nn.Module], does: str) -> TapError:
    """The error for a student whose head does not do what the teacher's ``does``."""
    return TapError(
        f'{type(models[1]).__name__} {does}, {type(models[0]).__name__} does not: no rows '
        "correspond. Take a teacher of the student's kind, or distil features."
    )


def only_call(recorder: Recorder, point: TapPoint, view: str, kind: str) -> Any:
    """What a module was given, or gave, in the one call of it in a step.

    Raises:
        TapError: naming the view and the kind of model that it reads, if there were other calls.
    """
    calls = recorder.raw(point)
    if len(calls) != 1:
        raise TapError(
            f'{point.path!r} was called {len(calls)} times in this step; the view {view!r} reads '
            f'{kind} that call it once.'
        )
    return calls[0]


def takes(method: Callable, name: str) -> bool:
    """Whether a view's method has this argument, which a view may leave out."""
    return name in inspect.signature(method).parameters
