"""Unpickling tensors and plain data, and nothing else.

A pickle is a program. This unpickler knows few instructions and a closed list of names (see
``plain_objects.py``). Python's own unpickler in C would do for the names, but reserves what memory
a file asks for.
"""

from __future__ import annotations

import _compat_pickle
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .plain_objects import (
    HISTORY,
    NAMES,
    Call,
    MalformedPickle,
    RefusedObject,
    Word,
    check_key,
    check_keys,
    fill_array,
    fill_dtype,
    fill_history,
    short,
)

_PYTHONS: Any = pickle._Unpickler


class PlainUnpickler(pickle._Unpickler):
    """Reads pickles of tensors and plain data.

    Args:
        file: where the pickle is read from.
        find_storage: called with dtype, key and number of elements, returns a :class:`Storage`.
        size: bytes of the file. What its calls copy is limited by it: a list that is written once
            could be made into a thousand sets.
        encoding: of the texts that Python 2 wrote.
    """

    # Parts of Python's own unpickler that its published types leave out.
    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    # Neither the registry of extensions, nor instances of old classes, nor shared buffers.
    _codes = (
        pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.POP_MARK
        + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.INT + pickle.BININT
        + pickle.BININT1 + pickle.BININT2 + pickle.LONG + pickle.LONG1 + pickle.LONG4
        + pickle.FLOAT + pickle.BINFLOAT + pickle.STRING + pickle.BINSTRING
        + pickle.SHORT_BINSTRING + pickle.UNICODE + pickle.BINUNICODE + pickle.SHORT_BINUNICODE
        + pickle.BINUNICODE8 + pickle.BINBYTES + pickle.SHORT_BINBYTES + pickle.BINBYTES8
        + pickle.EMPTY_LIST + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.EMPTY_SET
        + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3 + pickle.LIST + pickle.GET
        + pickle.BINGET + pickle.LONG_BINGET + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT
        + pickle.MEMOIZE
    )  # fmt: skip
    dispatch: ClassVar[dict[int, Callable]] = {code: _PYTHONS.dispatch[code] for code in _codes}

    def __init__(
        self, file: Any, find_storage: Callable, size: int, encoding: str = 'utf-8'
    ) -> None:
        super().__init__(file, encoding=encoding)
        self.find_storage = find_storage
        self.may_copy = 2 * size + 2**16

    def load(self) -> Any:
        """Reads one pickle.

        Raises:
            RefusedObject: at the first object that is not plain.
            MalformedPickle: for whatever else is no pickle of a checkpoint.
        """
        try:
            return super().load()
        except pickle.UnpicklingError:
            raise
        except KeyError as error:
            raise MalformedPickle(f'an unknown instruction or name {short(error.args)}') from error
        except Exception as error:  # junk makes it stumble in every way that Python knows
            raise MalformedPickle(f'{type(error).__name__}: {str(error)[:80]}') from error

    def find_class(self, module: str, name: str) -> Any:
        path = full_name(module, name)
        if path not in NAMES:
            raise RefusedObject(path, self._entry())
        return NAMES[path]

    def _entry(self) -> str | None:
        """The key of the dict entry that is being read: the last text that was read before."""
        for stack in (self.stack, *reversed(self.metastack)):
            for value in reversed(stack):
                if type(value) is str:
                    return value
        return None

    def load_reduce(self) -> None:
        args, call = self.stack.pop(), self.stack.pop()
        if type(call) is not Call or type(args) is not tuple:
            what = call.name if type(call) is Word else type(call).__name__
            raise MalformedPickle(f'it calls {what}, which no checkpoint needs')
        self._charge(args)
        try:
            value = call.function(*args)
        except RefusedObject as error:
            raise RefusedObject(error.name, self._entry()) from None
        self.append(value)

    def _charge(self, values: tuple) -> None:
        """Counts what a call is given to copy."""
        for value in values:
            if isinstance(value, (str, bytes, list, tuple, dict, set, frozenset)):
                self.may_copy -= len(value)
        if self.may_copy < 0:
            raise MalformedPickle('it copies the same data again and again')

    def load_newobj(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if kind != Word(HISTORY) or args != ():
            raise MalformedPickle('a new object of an unknown kind')
        self.append(HistoryBuffer())

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self._charge(state if type(state) is tuple else (state,))
        if type(target) is OrderedDict:  # versions of the modules, the only attribute there is
            if isinstance(state.get('_metadata'), dict):
                cast(Any, target)._metadata = state['_metadata']
        elif type(target) is HistoryBuffer:
            fill_history(target, state)
        elif type(target) is np.ndarray:
            fill_array(target, state)
        elif isinstance(target, np.dtype):
            fill_dtype(target, state)
        else:
            raise MalformedPickle(f'attributes for a {type(target).__name__}')

    def load_binpersid(self) -> None:
        kind, dtype, key, _, count, *view = self.stack.pop()
        if (kind, type(key), type(count)) != ('storage', str, int) or any(view) or count < 0:
            raise MalformedPickle('an unknown kind of storage')
        if not isinstance(dtype, torch.dtype):
            raise MalformedPickle('a storage without a type')
        self.append(self.find_storage(dtype, key, count))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(zip(check_keys(items[::2]), items[1::2])))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._dict()[check_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._dict().update(zip(check_keys(items[::2]), items[1::2]))

    def _dict(self) -> dict:
        if type(self.stack[-1]) not in (dict, OrderedDict, Counter):
            raise MalformedPickle(f'items for a {type(self.stack[-1]).__name__}')
        return self.stack[-1]

    def load_append(self) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._list().extend(items)

    def _list(self) -> list:
        if type(self.stack[-1]) is not list:
            raise MalformedPickle(f'elements for a {type(self.stack[-1]).__name__}')
        return self.stack[-1]

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise MalformedPickle(f'elements for a {type(self.stack[-1]).__name__}')
        self.stack[-1].update(check_keys(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # which puts another stack behind self.append
        self.append(frozenset(check_keys(items)))

    for _code, _load in (
        (pickle.GLOBAL, _PYTHONS.load_global),
        (pickle.STACK_GLOBAL, _PYTHONS.load_stack_global),
        (pickle.BYTEARRAY8, _PYTHONS.load_binbytes8),
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.BUILD, load_build),
        (pickle.BINPERSID, load_binpersid),
        (pickle.DICT, load_dict),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
        (pickle.ADDITEMS, load_additems),
        (pickle.FROZENSET, load_frozenset),
    ):
        dispatch[_code[0]] = _load


def full_name(module: str, name: str) -> str:
    """The name of an object; pickles of protocol 2 use Python 2's names for some of them."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f'{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}'
