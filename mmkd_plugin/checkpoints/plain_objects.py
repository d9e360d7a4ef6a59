"""What a pickle of tensors and plain data may name, and what each name stands for.

Each function here builds one plain object and checks what it is given, whatever a file says. No
class or function of another module is called with arguments from a file, apart from
:class:`HistoryBuffer`, which takes its arrays only after they were checked.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

# An expanded tensor has more elements than its storage; a copy of it has memory for all of them.
_LARGEST_EXPANSION = 1 << 24


class MalformedPickle(pickle.UnpicklingError):
    """No program that writes checkpoints makes such a pickle: it is damaged, or made to harm."""


class RefusedObject(pickle.UnpicklingError):
    """The pickle holds an object of another kind than the plain ones."""

    def __init__(self, name: str, entry: str | None) -> None:
        super().__init__(name)
        self.name = name
        self.entry = entry


class Storage(NamedTuple):
    """Numbers of a file: their bytes as a one-dimensional uint8 tensor, and their type."""

    data: Tensor
    dtype: torch.dtype


class Call(NamedTuple):
    """What the name of a function stands for; nothing else can be called."""

    function: Callable


class Word(NamedTuple):
    """What the name of a class stands for where it is only mentioned, not called."""

    name: str


# -- tensors -----------------------------------------------------------------------------------


def _view(
    storage: Storage, offset: int, size: Any, stride: Any, dtype: torch.dtype | None = None
) -> Tensor:
    """The tensor that lies in a storage; refuses what would reach beyond it."""
    if type(storage) is not Storage:
        raise MalformedPickle('a tensor without a storage')
    dtype = dtype or storage.dtype
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise MalformedPickle(f'a tensor of size {short(size)} and stride {short(stride)}')
    room = storage.data.numel() // dtype.itemsize
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if count and (last >= room or count > max(room, _LARGEST_EXPANSION)):
        raise MalformedPickle(f'a tensor of size {short(size)} in a storage of {room} numbers')
    tensor = torch.empty(0, dtype=dtype, device=storage.data.device)
    return tensor.set_(storage.data.untyped_storage(), offset if count else 0, size, stride)


def _tensor(
    storage: Storage, offset: int, size: Any, stride: Any, grad: bool = False, *rest: Any
) -> Tensor:
    """``torch._utils._rebuild_tensor`` and ``_v2``; ``rest``: backward hooks, metadata."""
    return _finish(_view(storage, offset, size, stride), grad, rest)


def _tensor_v3(
    storage: Storage, offset: int, size: Any, stride: Any, grad: bool, hooks: Any, dtype: Any, *rest
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise MalformedPickle('a tensor without a type')
    return _finish(_view(storage, offset, size, stride, dtype), grad, (hooks, *rest))


def _finish(tensor: Tensor, grad: bool, rest: tuple) -> Tensor:
    if any(rest):
        raise MalformedPickle('a tensor with backward hooks, or a conjugate of another')
    return tensor.requires_grad_(grad is True)


def _parameter(data: Tensor, grad: bool, *_rest: Any) -> nn.Parameter:
    """``torch._utils._rebuild_parameter``; ``_rest``: hooks and attributes, which are left out."""
    if not isinstance(data, Tensor):
        raise MalformedPickle('a parameter without numbers')
    return nn.Parameter(data.detach(), grad is True)


def _tensor_with_attributes(call: Any, _kind: Any, args: Any, _state: Any) -> Tensor:
    """``torch._tensor._rebuild_from_type_v2``; the attributes are left out."""
    if type(call) is not Call or call.function not in (_tensor, _tensor_v3, _parameter):
        raise MalformedPickle('a tensor that is built in an unknown way')
    return call.function(*args)


def _device(*args: Any) -> torch.device:
    return torch.device(*args)


# -- arrays ------------------------------------------------------------------------------------


def _array(kind: Any, shape: Any, _code: Any) -> np.ndarray:
    """``numpy._reconstruct``: an empty array, which the file then fills (see ``fill_array``)."""
    if kind != Word('numpy.ndarray') or shape != (0,):
        raise MalformedPickle('a call of numpy that no array needs')
    return np.empty(0, dtype='b')


def fill_array(array: Any, state: Any) -> None:
    """``ndarray.__setstate__`` with a type of plain numbers or text, and as many as there are."""
    _version, shape, dtype, fortran, data = state
    data = data.encode('latin1') if type(data) is str else data  # bytes of Python 2
    _check_dtype(dtype)
    sizes_fit = type(shape) is tuple and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
    if not (sizes_fit and type(data) is bytes and math.prod(shape) * dtype.itemsize == len(data)):
        raise MalformedPickle(f'an array of shape {short(shape)} with other contents')
    array.__setstate__((1, shape, dtype, bool(fortran), data))


def _array_of_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """``numpy._frombuffer``, by which protocol 5 writes arrays."""
    array = _array(Word('numpy.ndarray'), (0,), None)
    fill_array(array, (1, shape, dtype, order == 'F', bytes(buffer)))
    return array


def _dtype(kind: Any, *_flags: Any) -> np.dtype:
    if type(kind) is not str or not re.fullmatch(r'[<>=|]?([biufc]\d{1,2}|\?|[SUOV]\d{0,6})', kind):
        raise MalformedPickle(f'the array type {short(kind)}')
    if kind.lstrip('<>=|')[0] in 'OV':
        raise MalformedPickle('an array of Python objects or records')
    return np.dtype(kind, copy=True)


def fill_dtype(dtype: Any, state: Any) -> None:
    """``dtype.__setstate__``, for the order of the bytes alone."""
    order, rest = state[1], state[2:5]
    if type(order) is not str or order not in '<>=|' or rest != (None, None, None):
        raise MalformedPickle('an array type with fields')
    sizes = (dtype.itemsize, dtype.alignment) if dtype.kind in 'SU' else (-1, -1)
    if tuple(state[5:7]) != sizes:
        raise MalformedPickle('an array type of another size')
    dtype.__setstate__((3, order, None, None, None, *sizes, 0))


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, np.dtype) or dtype.kind not in 'biufcSU' or dtype.hasobject:
        raise MalformedPickle('an array of Python objects or records')


def _scalar(dtype: Any, data: Any) -> Any:
    _check_dtype(dtype)
    if type(data) is not bytes or len(data) != dtype.itemsize or not data:
        raise MalformedPickle('a number of another size')
    return np.frombuffer(data, dtype, 1)[0]


# -- plain data --------------------------------------------------------------------------------


def _encode(text: Any, encoding: Any = 'utf-8') -> bytes:
    """``_codecs.encode``, by which protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ('latin1', 'latin-1', 'utf-8'):
        raise MalformedPickle('bytes in an unknown encoding')
    return text.encode(encoding)


def _bytearray(data: Any = b'', encoding: Any = 'latin-1') -> bytearray:
    return bytearray(data if type(data) is bytes else _encode(data, encoding))


def _plain_dict(items: Any = ()) -> dict:
    """A ConfigDict as what it holds."""
    return dict(_checked_keys(items))


def _ordered(items: Any = ()) -> OrderedDict:
    return OrderedDict(_checked_keys(items))


def _counter(items: Any = ()) -> Counter:
    return Counter(_checked_keys(items))


def _checked_keys(items: Any) -> Any:
    if not isinstance(items, dict):
        items = list(items)
        for pair in items:
            check_key(pair[0])
    return items


def _set(items: Any = ()) -> set:
    return set(check_keys(items))


def _frozenset(items: Any = ()) -> frozenset:
    return frozenset(check_keys(items))


def _size(items: Any = ()) -> torch.Size:
    return torch.Size(items)


def _method(owner: Any, name: Any) -> None:
    """Stands in for ``getattr``, by which a pickle names a method; the method is not needed."""
    if (owner, name) not in _METHODS:
        raise RefusedObject(f'builtins.getattr of {short(name)}', None)


def check_key(key: Any) -> Any:
    """Refuses keys whose hash may take for ever (nested tuples, numbers made to collide)."""
    plain = (str, bytes, int, float, bool, type(None), torch.dtype)
    parts = key if type(key) is tuple and len(key) <= 64 else (key,)
    for part in parts:
        part = part.item() if isinstance(part, np.generic) else part
        if not isinstance(part, plain) or (type(part) is int and abs(part) >= (1 << 61) - 1):
            raise MalformedPickle(f'a key of the type {type(part).__name__}')
    return key


def check_keys(items: Any) -> list:
    return [check_key(item) for item in items]


def short(value: Any) -> str:
    """A few letters of a value that may be nested without end."""
    if isinstance(value, (list, tuple)):
        return f'({", ".join(short(v) for v in value[:8] if not isinstance(v, (list, tuple)))})'
    return repr(value)[:40] if isinstance(value, (str, int, float)) else type(value).__name__


def fill_history(history: HistoryBuffer, state: Any) -> None:
    """The numbers of a log; its statistics are those of the class."""
    values, counts = state['_log_history'], state['_count_history']
    for array in (values, counts):
        if type(array) is not np.ndarray or array.ndim != 1 or array.dtype.kind not in 'biuf':
            raise MalformedPickle('a log without numbers')
    if len(values) != len(counts) or type(state['max_length']) is not int:
        raise MalformedPickle('a log of two lengths')
    history.max_length = state['max_length']
    history._log_history, history._count_history = values, counts


# -- names -------------------------------------------------------------------------------------

HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
_METHODS = {
    *((Word(HISTORY), name) for name in ('min', 'max', 'current', 'mean')),
    *((Word(_ONE_CYCLE), name) for name in ('_annealing_cos', '_annealing_linear')),
}
_STORAGES = dict(
    Double=torch.float64,
    Float=torch.float32,
    Half=torch.float16,
    BFloat16=torch.bfloat16,
    Long=torch.int64,
    Int=torch.int32,
    Short=torch.int16,
    Char=torch.int8,
    Byte=torch.uint8,
    Bool=torch.bool,
    ComplexDouble=torch.complex128,
    ComplexFloat=torch.complex64,
)
_CALLS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _tensor_with_attributes,
    'torch.Size': _size,
    'torch.device': _device,
    'numpy.core.multiarray._reconstruct': _array,
    'numpy._core.multiarray._reconstruct': _array,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
    'numpy.core.numeric._frombuffer': _array_of_buffer,
    'numpy._core.numeric._frombuffer': _array_of_buffer,
    'numpy.dtype': _dtype,
    '_codecs.encode': _encode,
    'builtins.bytearray': _bytearray,
    'builtins.complex': complex,
    'builtins.frozenset': _frozenset,
    'builtins.getattr': _method,
    'builtins.set': _set,
    'builtins.slice': slice,
    'collections.Counter': _counter,
    'collections.OrderedDict': _ordered,
    'mmengine.config.config.ConfigDict': _plain_dict,
}
_WORDS = ('numpy.ndarray', 'torch.Tensor', 'torch.nn.parameter.Parameter', HISTORY, _ONE_CYCLE)


def _names() -> dict[str, Any]:
    names: dict[str, Any] = {name: Call(function) for name, function in _CALLS.items()}
    names.update({name: Word(name) for name in _WORDS})
    # Protocol 4 names methods in full instead of calling getattr.
    names.update({f'{owner.name}.{name}': Word(name) for owner, name in _METHODS})
    for kind, dtype in _STORAGES.items():
        for module in ('torch', 'torch.cuda'):
            names[f'{module}.{kind}Storage'] = dtype
    names['torch.storage.UntypedStorage'] = torch.uint8
    # float8_e4m3fn and others come and go with torch's versions; quantised ones need scales.
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype) and not name.startswith(('q', 'bits')):
            names[f'torch.{name}'] = value
    return names


NAMES = _names()
