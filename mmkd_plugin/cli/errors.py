"""Errors of the tools: mistakes of the user in one sentence, faults of code with their traceback.

A mistake is found where a config, a command line, a file or a pair of models is looked at, by a
``raise`` written for it. What no ``raise`` of this package or of MMEngine's config and registry
says, such as an ``AttributeError`` in somebody's model, keeps its traceback.
"""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import mmengine
from mmengine.dist import get_rank

OWN = Path(__file__).resolve().parents[1]  # the whole package
# The parts of MMEngine that read configs and build from them.
_MMENGINE = Path(mmengine.__file__).resolve().parent
_PARTS = ('config', 'registry', 'fileio', 'runner', 'dataset', 'hooks', 'optim', 'utils')
_READERS = tuple(_MMENGINE / part for part in _PARTS)
_REGISTRY = _MMENGINE / 'registry'
_HINT = ' (--debug shows the traceback)'  # of sentences that were written for programmers
_RAISE = dis.opmap['RAISE_VARARGS']


class UsageError(SystemExit):
    """A mistake of the user: printed as one sentence, without a traceback; exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(f'error: {message}')


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Ends a tool with one line, the last of its output, where the user can mend the error.

    With ``debug`` every error shows its traceback.

    Raises:
        UsageError: in place of an exception that :func:`sentence_of` has a sentence for.
    """
    try:
        yield
    except Exception as error:
        sentence = None if debug else sentence_of(error)
        if sentence is None:
            raise
        sys.stdout.flush()  # the log is written there; the line comes after it
        rank = get_rank()
        if rank:
            sentence = f'[rank {rank}] {sentence}'
        raise UsageError(sentence) from None


def sentence_of(error: BaseException) -> str | None:
    """What a user can do something about, on one line; ``None`` for a fault in code."""
    error = _cause(error)
    message = ' '.join(_text(error).split())
    trace = _innermost(error)
    file = None if trace is None else Path(trace.tb_frame.f_code.co_filename).resolve()
    if not message or file is None or trace is None:
        return None
    if file.is_relative_to(OWN) and _was_raised(trace):
        return message
    if isinstance(error, OSError):  # a file or folder that is missing, unreadable or full
        return message + _HINT
    # The registry's also where a class did not take an argument, without a raise.
    if file.is_relative_to(_REGISTRY) or (
        _was_raised(trace) and any(file.is_relative_to(place) for place in _READERS)
    ):
        return message + _HINT
    return None


def _cause(error: BaseException) -> BaseException:
    """The exception itself, of those that a registry has wrapped with the class it was building.

    MMEngine raises ``type(error)('class `X` in x/y.py: message')`` at every level it builds.
    """
    while (inner := error.__cause__ or error.__context__) is not None:
        wrapped = re.match(r'class `\w+` in [\w/.-]+\.py: ', _text(error))
        if wrapped is None or type(inner) is not type(error):
            break
        error = inner
    return error


def _text(error: BaseException) -> str:
    """The message; ``str`` would put that of a KeyError into quotes.

    That of a worker of the DataLoader ends with the last line of its traceback.
    """
    quoted = isinstance(error, KeyError) and len(error.args) == 1
    text = str(error.args[0] if quoted else error).strip()
    if text.startswith('Caught ') and 'Original Traceback' in text:
        return text.splitlines()[-1].removeprefix(f'{type(error).__name__}: ')
    return text


def _innermost(error: BaseException) -> TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _was_raised(trace: TracebackType) -> bool:
    """Whether a ``raise`` statement made the error, not an operation that went wrong."""
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE
