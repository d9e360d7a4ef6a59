"""Errors of this package that are more than a bad value; tools show them as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TapError(ValueError):
    """A tap that does not fit the model."""


class ProbeError(ValueError):
    """A model that cannot run on the probe image."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says what to do."""


def put_place(error: ValueError, where: str) -> None:
    """Puts the place in a config in front of a message, such as ``terms[0] ('kd'): ...``.

    A message that names this place, or one within it, stays as it is.
    """
    if not str(error).startswith(where):
        error.args = (f'{where}: {error}',)


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Puts ``where`` in front of what is refused within, see :func:`put_place`."""
    try:
        yield
    except ValueError as error:  # TapError is one
        put_place(error, where)
        raise
