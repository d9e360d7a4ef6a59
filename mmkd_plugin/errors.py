"""Errors of this package that are more than a bad value; tools show them as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class WithEvidence(Exception):
    """An error that brings the numbers and names of its message along, for reports.

    Args:
        *args: the message.
        **evidence: sizes, names, near matches: plain values.
    """

    def __init__(self, *args: object, **evidence: Any) -> None:
        super().__init__(*args)
        self.evidence = evidence


class Refusal(WithEvidence, ValueError):
    """A config or a pair with which training would not begin."""


class TapError(Refusal):
    """A tap that does not fit the model."""


class ProbeError(Refusal):
    """A model that cannot run on the probe image."""


class CheckpointError(WithEvidence, RuntimeError):
    """A checkpoint that cannot be used; the message says what to do."""


def in_short(error: BaseException) -> str:
    """Kind and message of somebody else's error on one line, for a sentence of ours."""
    what = ' '.join(str(error).split())[:300] or 'no message'
    return f'{type(error).__name__}: {what}'


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
