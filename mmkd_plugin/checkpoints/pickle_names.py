"""Which objects a pickle that was refused names, and whether it was made to do harm."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from typing import Any, ClassVar

from .plain_objects import NAMES, MalformedPickle
from .safe_pickle import PlainUnpickler, full_name


class _Inert:
    """Takes the place of every object of a pickle that is only looked at."""


class _NamesOnly(PlainUnpickler):
    """Collects the names in a pickle, and builds and calls nothing."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, lambda *_: _Inert(), 0)
        self.found: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        self.found.append(full_name(module, name))
        return _Inert()

    def load_build(self) -> None:
        self.stack.pop()

    def load_call(self) -> None:
        self.stack[-2:] = [_Inert()]

    def load_call_with_keywords(self) -> None:
        self.stack[-3:] = [_Inert()]

    def load_persid(self) -> None:
        self.stack[-1] = _Inert()

    def load_items(self) -> None:
        self.pop_mark()

    def load_item(self) -> None:
        del self.stack[-2:]

    def load_value(self) -> None:
        self.stack.pop()

    def load_marked(self) -> None:
        self.pop_mark()
        self.append(_Inert())

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode('utf-8', 'replace') for _ in range(2))
        self.pop_mark()
        self.append(self.find_class(module, name))

    def load_extension(self) -> None:
        raise MalformedPickle('a name of the extension registry')

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)
    for _instructions, _load in (
        (pickle.REDUCE + pickle.NEWOBJ, load_call),
        (pickle.NEWOBJ_EX, load_call_with_keywords),
        (pickle.BUILD, load_build),
        (pickle.BINPERSID, load_persid),
        (pickle.SETITEMS + pickle.APPENDS + pickle.ADDITEMS, load_items),
        (pickle.SETITEM, load_item),
        (pickle.APPEND, load_value),
        (pickle.DICT + pickle.FROZENSET + pickle.OBJ, load_marked),
        (pickle.INST, load_inst),
        (pickle.EXT1 + pickle.EXT2 + pickle.EXT4, load_extension),
    ):
        for _instruction in _instructions:
            dispatch[_instruction] = _load


def names_in(file: Any, pickles: int = 1) -> list[str]:
    """All names that up to so many ``pickles`` in a row mention, as far as they can be followed;
    nothing is called.
    """
    found = []
    for _ in range(pickles):
        unpickler = _NamesOnly(file)
        with contextlib.suppress(pickle.UnpicklingError):
            unpickler.load()
        found += unpickler.found
    return list(dict.fromkeys(found))


# What runs commands or code, or opens a way to it: no kind of checkpoint mentions these.
_DANGEROUS_MODULES = (
    '_posixsubprocess asyncio bdb code codeop commands ctypes distutils glob idlelib '
    'importlib marshal multiprocessing nt operator os pdb pickle pip pkgutil platform posix '
    'profile cProfile pty pydoc runpy shutil signal site smtplib socket ssl subprocess sys '
    'tempfile threading timeit trace types urllib venv webbrowser http ftplib requests'
).split()
_DANGEROUS_NAMES = (
    'eval exec compile open getattr setattr delattr __import__ globals locals vars input '
    'breakpoint apply execfile file map filter'
).split()


def foreign(names: list[str]) -> list[str]:
    """Those of ``names`` that stand for other things than plain data."""
    return [name for name in names if name not in NAMES]


def dangerous(names: list[str]) -> list[str]:
    """Those of ``names`` that only a file made to harm mentions."""
    return [_common_name(name) for name in foreign(names) if _is_dangerous(name)]


def _is_dangerous(name: str) -> bool:
    module, _, last = name.rpartition('.')
    if module.split('.')[0] == 'builtins':
        return last in _DANGEROUS_NAMES or '.' in module
    runs_code = re.fullmatch(r'(system|popen|spawn|exec|eval|compile|open|_?load|run)\w*', last)
    # Many a module has ``os`` among its attributes, from which getattr takes the function.
    modules = {module.split('.')[0], last}
    return not modules.isdisjoint(_DANGEROUS_MODULES) or bool(runs_code)


def known_here(name: str) -> bool:
    """Whether an object of this name can exist in this environment; imports nothing."""
    *parents, last = name.split('.')
    if not parents or not all(part.isidentifier() for part in (*parents, last)):
        return False
    places: Sequence[str] | None = None  # sys.path
    for depth in range(1, len(parents) + 1):
        module = '.'.join(parents[:depth])
        if module in sys.modules:
            places = getattr(sys.modules[module], '__path__', [])
            continue
        try:
            if depth == 1:
                spec = importlib.util.find_spec(module)
            else:
                spec = PathFinder.find_spec(module, places)
        except (ImportError, ValueError):
            return False
        if spec is None:
            return False
        places = spec.submodule_search_locations or []
    return module not in sys.modules or hasattr(sys.modules[module], last)


def _common_name(name: str) -> str:
    """``os.system`` is pickled by the name of the module that implements it."""
    module, _, last = name.partition('.')
    return f'os.{last} ({name})' if module in ('posix', 'nt') else name
