"""The contract of a view, and the registry that finds the one for a model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from ..checks import carry_old_names, check_keys, nearest, shown
from ..errors import placed
from ..taps import Capture, Recorder, TapConfig, TapError, TapPoint, parse_tap
from ..taps.partial_forward import reads_text
from .predictions import ALIKE, HeadSpec, PairContext, Predictions


class View:
    """Reads what a recorder saw in one step. Its two kinds are below.

    Attributes:
        points: module inputs and outputs that the recorder must keep.
    """

    points: list[TapPoint]

    @property
    def teacher_points(self) -> list[TapPoint]:
        """What the recorder must keep where the view serves as the teacher's; ``points`` if a view
        does not say otherwise. A teacher runs no deeper than these, and computes no losses."""
        return self.points

    def compares_classes(self, model: nn.Module) -> bool:
        """Whether a term on the student's view compares classes, which both models must share."""
        raise NotImplementedError


class TapView(View):
    """The tensors at module paths, as they are."""

    def __init__(
        self, config: TapConfig, model: nn.Module, needs: Sequence[str], where: str
    ) -> None:
        if needs:
            raise TapError(
                f'{where}={config!r} is a module path, but the loss needs {" and ".join(needs)}, '
                f'which a module does not tell. Use a view: {", ".join(view_names())}.'
            )
        self.points = parse_tap(config, model, where)

    def read(self, recorder: Recorder) -> list[Capture]:
        """The levels of this step."""
        return recorder.read(self.points)

    def compares_classes(self, model: nn.Module) -> bool:
        return any(_is_class_layer(point, model) for point in self.points)


def _is_class_layer(point: TapPoint, model: nn.Module) -> bool:
    """Whether a point is the output of the layer of a head that has a channel for each class."""
    layer = model.get_submodule(point.path)
    channels = getattr(layer, 'out_channels', getattr(layer, 'out_features', None))
    parents = point.path.split('.')[:-1]
    for depth in range(1, len(parents) + 1):
        head = model.get_submodule('.'.join(parents[:depth]))
        classes = getattr(head, 'num_classes', None)
        if point.source == 'output' and isinstance(channels, int) and isinstance(classes, int):
            columns = getattr(head, 'cls_out_channels', classes)
            if channels in (classes, classes + 1, columns * getattr(head, 'num_base_priors', 1)):
                return True
    return False


class LogitView(View):
    """Reads the logits of one kind of head as :class:`Predictions`.

    A subclass says by :meth:`fits` which models it understands, names in its constructor the
    ``points`` to listen at, tells by :meth:`specs` what it will give, and gives it in :meth:`read`.
    It keeps no reference to the model: a deep copy of the student copies its views. Where a view
    serves as the teacher's, :meth:`read` also brings the rows into the student's order.

    Args:
        model: the model to look at.
        needs: what the loss wants beside the logits, such as ``'features'``.
        where: names the config entry in error messages; what the constructor refuses gets it put
            in front.

    Attributes:
        teacher_only: True for a view that reads a teacher only, and brings any head to the
            student's activation and number of Predictions; formerly ``follows``.
        of_classes: False where columns are no classes (bins of distances): a class_map then leaves
            them as they are.
        repeats: True for a view that brings a teacher's rows also to a student whose maps hold each
            image several times (TridentNet's branches).
        default_select: which rows a term compares if it does not say; None leaves it to the loss.
    """

    teacher_only: bool = False
    of_classes: bool = True
    repeats: bool = False
    default_select: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        carry_old_names(cls, follows='teacher_only')

    def __init__(self, model: nn.Module, needs: Sequence[str], where: str) -> None:
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

    def specs(self, model: nn.Module) -> list[HeadSpec]:
        """One for each of the Predictions that :meth:`read` will give; runs no forward."""
        raise NotImplementedError

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


def takes(method: Callable, name: str) -> bool:
    """Whether a view's method has this argument, which a view may leave out."""
    return name in inspect.signature(method).parameters


_VIEWS: dict[str, list[type[LogitView]]] = {}


def register_view(*names: str) -> Callable[[type[LogitView]], type[LogitView]]:
    """Class decorator: offers a view under ``names`` for the models that it fits.

    Where several fit, the one registered last is taken: yours before those of this package.
    """

    def register(cls: type[LogitView]) -> type[LogitView]:
        for name in names:
            _VIEWS.setdefault(name, []).insert(0, cls)
        return cls

    return register


def view_names() -> list[str]:
    return list(_VIEWS)


def views(name: str) -> list[type[LogitView]]:
    """The views registered under ``name``, in the order in which they are tried."""
    return list(_VIEWS[name])


def make_view(
    config: TapConfig,
    model: nn.Module,
    needs: Sequence[str] = (),
    where: str = 'tap',
    role: str = 'student',
) -> TapView | LogitView:
    """The view of a config entry: a view's name, ``dict(view=name)``, or whatever a tap may be.

    Args:
        config: the entry.
        model: the model to look at.
        needs: what the loss wants beside the tensors.
        where: names the entry in messages.
        role: ``'student'`` or ``'teacher'``, which of them the model is.

    Raises:
        TapError: no such view or module, or no view of that name fits the model.
    """
    name = config
    if isinstance(config, dict) and 'view' in config:
        check_keys(config, ['view'], f'{where} (a view is read whole)')
        name = config['view']
        if not isinstance(name, str) or name not in _VIEWS:
            raise TapError(f'{where}: there is no view {shown(name)}; {nearest(name, _VIEWS)}.')
    if not isinstance(name, str) or name not in _VIEWS:
        try:
            return TapView(config, model, needs, where)
        except ValueError as error:
            meant = _meant(config)
            if meant is None:
                raise
            raise TapError(
                f'{error} Did you mean the view {meant!r}? A view is read whole and stands alone, '
                f'without levels or lists: {meant!r}.'
            ) from None
    for cls in _VIEWS[name]:
        if cls.fits(model):
            with placed(where):
                view = cls(model, needs, where)
            _check_features(view, model, needs, f'{where}={name!r}')
            return view
    if reads_text(model):
        raise TapError(
            f'{where}: {type(model).__name__} reads text beside the images: the columns of its '
            f'logits are words of a prompt, no classes, and the view {name!r} does not serve it. '
            "Distil features instead, such as student='neck'."
        )
    kinds = ', '.join(cls.__name__ for cls in _VIEWS[name])
    others = [n for n in fitting(model, student=role == 'student') if n != name]
    hint = f' Views that fit it: {", ".join(others)}.' if others else ''
    raise TapError(
        f'{where}: no view {name!r} fits {type(model).__name__} (there are: {kinds}).{hint} Tap a '
        'module path instead, or write a view for it: a LogitView with '
        f"@register_view('{name}'), see mmkd_plugin/views/classifier.py."
    )


def make_logit_view(
    name: str,
    model: nn.Module,
    needs: Sequence[str] = (),
    where: str = 'tap',
    role: str = 'student',
) -> LogitView:
    """:func:`make_view` of a view's name."""
    return cast(LogitView, make_view(name, model, needs, where, role))


def fitting(model: nn.Module, student: bool = True) -> list[str]:
    """Names of the views that fit a model, as a student's or as a teacher's."""
    return [
        name
        for name, classes in _VIEWS.items()
        if any(cls.fits(model) and not (student and cls.teacher_only) for cls in classes)
    ]


def _check_features(view: LogitView, model: nn.Module, needs: Sequence[str], what: str) -> None:
    if 'features' not in needs or view.teacher_only:
        return
    for spec in view.specs(model):
        if spec.feature_dim is None:
            raise TapError(
                f'{what}: the loss needs what the classification layer of {spec.label!r} reads, '
                f'which {type(view).__name__} does not give. Take a loss without features, such as '
                'KDLoss, or let the view set HeadSpec.feature_dim and Level.features.'
            )


def _meant(config: TapConfig) -> str | None:
    """The view whose name, or nearly so, stands where a module path was read."""
    if isinstance(config, dict):
        config = list(config.values())
    for item in config if isinstance(config, (list, tuple)) else [config]:
        if isinstance(item, (dict, list, tuple)):
            found = _meant(item)
        else:
            found = next(iter(difflib.get_close_matches(str(item), _VIEWS, n=1, cutoff=0.8)), None)
        if found:
            return found
    return None
