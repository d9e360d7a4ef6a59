"""The contract of a view, and the registry that finds the one for a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..registry import check_keys, nearest
from ..taps import Capture, Recorder, TapConfig, TapError, TapPoint, parse_tap


class View:
    """Reads what a recorder saw in one step as tensors with a meaning.

    A subclass says by :meth:`fits` which models it understands, names in its constructor the
    ``points`` to listen at, and turns their captures into levels in :meth:`read`.

    Args:
        model: the model to look at.
        needs: what the loss wants beside the tensors: of ``'labels'``, ``'features'``.
        where: names the config entry in error messages.

    Attributes:
        points: module inputs and outputs that the recorder must keep.
    """

    points: list[TapPoint]

    def __init__(self, model: nn.Module, needs: Sequence[str], where: str) -> None:
        raise NotImplementedError

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether this view understands ``model``: by what it has, not by its class."""
        raise NotImplementedError

    def read(self, recorder: Recorder, data_samples: Any) -> list[Capture]:
        """The levels of this step.

        Args:
            recorder: of the view's model, after its forward.
            data_samples: those of the batch; ``None`` in the probe, which has no labels.

        Returns:
            Captures whose ``extras`` hold what the view was asked for by ``needs``.
        """
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

    def read(self, recorder: Recorder, data_samples: Any) -> list[Capture]:
        return recorder.read(self.points)


_VIEWS: dict[str, list[type[View]]] = {}


def register_view(name: str) -> Callable[[type[View]], type[View]]:
    """Class decorator: offers a view under ``name`` for the models that it fits."""

    def register(cls: type[View]) -> type[View]:
        _VIEWS.setdefault(name, []).append(cls)
        return cls

    return register


def view_names() -> list[str]:
    return list(_VIEWS)


def make_view(
    config: TapConfig, model: nn.Module, needs: Sequence[str] = (), where: str = 'tap'
) -> View:
    """The view of a config entry: a view's name, ``dict(view=name)``, or whatever a tap may be.

    Raises:
        TapError: no such view or module, or no view of that name fits the model.
    """
    name = config
    if isinstance(config, dict) and 'view' in config:
        check_keys(config, ['view'], where)
        name = config['view']
        if name not in _VIEWS:
            raise TapError(f'{where}: there is no view {name!r}; {nearest(str(name), _VIEWS)}.')
    if not isinstance(name, str) or name not in _VIEWS:
        try:
            return TapView(config, model, needs, where)
        except TapError as error:
            meant = difflib.get_close_matches(str(config), _VIEWS, n=1, cutoff=0.8)
            if not meant:
                raise
            raise TapError(f'{error} Did you mean the view {meant[0]!r}?') from None
    for cls in _VIEWS[name]:
        if cls.fits(model):
            return cls(model, needs, where)
    kinds = ', '.join(cls.__name__ for cls in _VIEWS[name])
    raise TapError(
        f'{where}: no view {name!r} fits {type(model).__name__} (there are: {kinds}). Tap a module '
        "path instead, or write a view for it: a class with @register_view('"
        f"{name}'), see mmkd_plugin/views/classifier.py."
    )
