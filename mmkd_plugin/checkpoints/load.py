"""Loading checkpoint files without running code from them."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from ..errors import CheckpointError
from .file import DamagedFile, Stream, buffer_of, few, kind_of, not_a_checkpoint, pickle_of, records
from .pickle_names import dangerous, foreign, known_here, names_in
from .plain_objects import MalformedPickle, RefusedObject, Storage
from .safe_pickle import PlainUnpickler

# Tensors that are not simply numbers in memory, by the functions that torch rebuilds them with.
_TENSOR_KINDS = {
    'torch._utils._rebuild_sparse_tensor': 'a sparse tensor',
    'torch._utils._rebuild_sparse_csr_tensor': 'a sparse tensor',
    'torch._utils._rebuild_qtensor': 'a quantized tensor',
    'torch._utils._rebuild_meta_tensor_no_storage': 'a meta tensor, which has no numbers',
    'torch._utils._rebuild_nested_tensor': 'a nested tensor',
    'torch._utils._rebuild_wrapper_subclass': 'a tensor of a class of its own',
}


def load_file(path: str | Path, key: str, **options: Any) -> Any:
    """What :func:`read_file` reads, with the same options, without the hash."""
    return read_file(path, key, **options)[0]


def read_file(
    path: str | Path,
    key: str,
    trust: bool = False,
    device: Any = 'cpu',
    advice: str = 'add trust_checkpoint=True beside the checkpoint',
) -> tuple[Any, str]:
    """Loads a checkpoint file safely, and compares it with its checksums on the way.

    Only tensors and plain data are unpickled. ``trust=True`` allows anything, code included.

    Args:
        path: a file of ``torch.save``, new or old format, or a safetensors file.
        key: what the file is, for messages.
        trust: load what cannot be read safely with ``torch.load``, which runs what the file says.
        device: where tensors are put.
        advice: how the user allows pickled objects, for the message.

    Returns:
        The contents and the file's SHA-256.

    Raises:
        CheckpointError: if the file is truncated, damaged, no checkpoint, made to do harm, or
            holds objects that only trusted files may.
    """
    path = Path(path)
    try:
        kind = kind_of(path)
        if kind == 'zip':
            return _read_zip(path, device)
        if kind == 'pickle':
            return read_old_format(path), _sha256(path)
        if kind == 'safetensors':
            return _read_safetensors(path, key, device), _sha256(path)
        raise not_a_checkpoint(path, key, kind)
    except pickle.UnpicklingError as error:
        names = _names(path)
        if trust and (isinstance(error, RefusedObject) or foreign(names)):
            return torch.load(path, map_location=device, weights_only=False), _sha256(path)
        raise _refused(path, key, error, names, advice) from error
    except (DamagedFile, OSError, RuntimeError, EOFError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise not_a_checkpoint(path, key, error) from error


def verify_file(path: str | Path, key: str = 'checkpoint') -> None:
    """Checks that a checkpoint file is whole; of a zip archive nothing is unpickled.

    Every record of a zip archive is compared with its checksum. The old format has none: it is
    read to see that nothing is missing. Messages call the file ``key``.

    Raises:
        CheckpointError: if it is truncated, damaged, missing or no checkpoint.
    """
    try:
        kind = kind_of(path)
        if kind == 'zip':
            with open(path, 'rb') as file:
                pickle_of(records(file))
        elif kind == 'pickle':
            read_old_format(Path(path))
        elif kind == 'safetensors':
            _read_safetensors(Path(path), key, 'cpu')
        else:
            raise not_a_checkpoint(path, key, kind)
    except RefusedObject:
        pass  # it holds other objects, which is no damage
    except (OSError, DamagedFile, pickle.UnpicklingError) as error:
        raise not_a_checkpoint(path, key, error) from error


def _read_zip(path: Path, device: Any) -> tuple[Any, str]:
    digest, contents = hashlib.sha256(), dict[str, torch.Tensor]()
    with open(path, 'rb') as file:
        program = pickle_of(records(file, digest, contents))
    root = program.removesuffix('data.pkl')
    order = contents.get(f'{root}byteorder')
    if order is not None and bytes(order.numpy()) != sys.byteorder.encode():
        raise DamagedFile('it was written by a machine with another order of bytes')
    moved = {}

    def find(dtype: torch.dtype, key: str, count: int) -> Storage:
        data = contents.get(f'{root}data/{key}')
        if data is None or count * dtype.itemsize > data.numel():
            raise MalformedPickle(f'a storage of {count} numbers that is not in the file')
        if key not in moved:
            moved[key] = data.to(device)
        return Storage(moved[key], dtype)

    program_file = io.BytesIO(buffer_of(contents[program]))
    size = contents[program].numel()
    return PlainUnpickler(program_file, find, size).load(), digest.hexdigest()


def read_old_format(path: Path) -> Any:
    """Reads a file of ``torch.save(..., _use_new_zipfile_serialization=False)``.

    Five pickles (magic number, version, machine, contents, keys of the storages), then the number
    of elements and the bytes of each storage.

    Raises:
        DamagedFile: if it is no such file, or ends too early.
        pickle.UnpicklingError: if a pickle is damaged or holds more than plain data.
    """
    storages: dict[str, tuple[torch.Tensor, int]] = {}

    def find(dtype: torch.dtype, key: str, count: int) -> Storage:
        if key not in storages:
            used = sum(data.numel() for data, _ in storages.values())
            if used + count * dtype.itemsize > stream.size:
                raise MalformedPickle(f'a storage of {count} numbers that is not in the file')
            storages[key] = (torch.empty(count * dtype.itemsize, dtype=torch.uint8), count)
        return Storage(storages[key][0], dtype)

    with open(path, 'rb') as file:
        stream = Stream(file)

        def load() -> Any:
            return PlainUnpickler(stream, find, stream.size).load()

        magic = load()
        if type(magic) is not int or magic != MAGIC_NUMBER:
            raise DamagedFile('it is a pickle, but none of torch.save')
        version, machine, loaded, keys = (load() for _ in range(4))
        _check_origin(version, machine)
        named = type(keys) is list and all(type(key) is str for key in keys)
        if not named or set(keys) != set(storages):
            raise DamagedFile('its tensors use other storages than it has')
        for key in keys:
            data, count = storages[key]
            if int.from_bytes(stream.exactly(8), 'little') != count:
                raise DamagedFile(f'the storage {key[:40]!r} has another size than its tensors')
            stream.fill(buffer_of(data))
    return loaded


def _check_origin(version: Any, machine: Any) -> None:
    if type(version) is not int or version != PROTOCOL_VERSION or type(machine) is not dict:
        raise DamagedFile('it is of another version of the old format')
    if machine.get('little_endian') is not (sys.byteorder == 'little'):
        raise DamagedFile('it was written by a machine with another order of bytes')


def _read_safetensors(path: Path, key: str, device: Any) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load
    except ImportError:
        raise CheckpointError(
            f'{key}={str(path)!r} is a safetensors file, and the package that reads it is not '
            'installed here: pip install safetensors.'
        ) from None
    try:
        return dict(load(str(path), device=str(device)))
    except SafetensorError as error:
        raise DamagedFile(f'safetensors: {error}') from error


def _sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _names(path: Path) -> list[str]:
    """The names in a file's pickles."""
    with open(path, 'rb') as file:
        if kind_of(path) != 'zip':
            return names_in(Stream(file), 4)
        contents: dict[str, torch.Tensor] = {}
        return names_in(io.BytesIO(buffer_of(contents[pickle_of(records(file, None, contents))])))


def _refused(
    path: Path, key: str, error: pickle.UnpicklingError, names: list[str], advice: str
) -> CheckpointError:
    """The error for a pickle of other things than plain data; only harmless ones get advice."""
    file = f'{key}={str(path)!r}'
    harm = dangerous(names)
    if isinstance(error, RefusedObject) and error.name.startswith('builtins.getattr'):
        harm.append(error.name)
    if harm:
        return CheckpointError(
            f'{file} calls {few(harm, 4)}: reading it would run code that no checkpoint needs. It '
            'was made to do harm, so it was not loaded. Delete it.'
        )
    if not isinstance(error, RefusedObject):
        return not_a_checkpoint(path, key, error)
    if error.name in _TENSOR_KINDS:
        return CheckpointError(
            f'{file}: the entry {error.entry!r} is {_TENSOR_KINDS[error.name]}. Only dense tensors '
            'are read; save the file anew with dense tensors of plain numbers.'
        )
    unknown = [name for name in foreign(names) if not known_here(name)]
    if unknown:
        return not_a_checkpoint(path, key, f'it names {few(unknown, 4)}, which is not known here')
    return CheckpointError(
        f'{file} holds {few(foreign(names), 4)} besides tensors and plain data, so it was not '
        f'loaded: unpickling it could run code. If you trust where the file comes from, {advice}.'
    )
