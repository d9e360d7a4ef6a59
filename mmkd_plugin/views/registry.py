"""Which views there are, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

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
    """Names of the views that fit a model, as a student's or as a teacher's."""
    return [
        name
        for name, classes in VIEWS.items()
        if any(cls.fits(model) and not (student and cls.teacher_only) for cls in classes)
    ]
