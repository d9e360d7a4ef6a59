"""Which views there are, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..taps.body import Body, body_of
from .base import LogitView

VIEWS: dict[str, list[type[LogitView]]] = {}


def register_view(*names: str) -> Callable[[type[LogitView]], type[LogitView]]:
    """Class decorator: offers a view under ``names`` for the models that it fits.

    Where several fit, the one registered last is taken: yours before those of this package.
    """

    def register(cls: type[LogitView]) -> type[LogitView]:
        for name in names:
            VIEWS.setdefault(name, []).insert(0, cls)
        return cls

    return register


def view_names() -> list[str]:
    return list(VIEWS)


def views(name: str) -> list[type[LogitView]]:
    """The views registered under ``name``, in the order in which they are tried."""
    return list(VIEWS[name])


def fitting(model: nn.Module, student: bool = True) -> list[str]:
    """Names of the views that fit a model or its body, as a student's or as a teacher's."""
    return [
        name
        for name, classes in VIEWS.items()
        if any(
            cls.fits(module) and not (student and cls.teacher_only)
            for cls in classes
            for module in {model, body_of(model).module}
        )
    ]


def find_view(name: str, model: nn.Module) -> tuple[type[LogitView], Body] | None:
    """The first view of a name that fits a model, else one that fits the detector inside it."""
    whole = Body('', model)
    for body in dict.fromkeys((whole, body_of(model))):
        for cls in VIEWS[name]:
            if cls.fits(body.module):
                return cls, body
    return None
