"""The bytes of a checkpoint file: what kind of file it is, and whether it is whole.

``torch.load`` does not compare the checksums that ``torch.save`` writes, so a flipped bit gives
other weights without a word. Here each record is checked while it is read.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import CheckpointError

_BLOCK = 1 << 22


class DamagedFile(Exception):
    """The contents of a file are not what was written; the text says in which way."""


def kind_of(path: str | Path) -> str:
    """What a file is, by its first bytes.

    Returns:
        ``'zip'`` and ``'pickle'`` for the two formats of ``torch.save``, ``'safetensors'``, or
        words for a message about anything else.
    """
    size = Path(path).stat().st_size
    with open(path, 'rb') as file:
        head = file.read(512)
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    if head[:1] == b'\x80' and head[1:2] <= b'\x05':
        return 'pickle'
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= size - 8:
        return 'safetensors'
    if not head:
        return 'an empty file'
    if head.startswith(b'version https://git-lfs'):
        return 'a pointer of Git LFS, which stands for a file that was not fetched (git lfs pull)'
    if head.lstrip()[:1] == b'<':
        return 'a web page or XML'
    for magic, name in _OTHER_FILES.items():
        if head.startswith(magic):
            return name
    return 'a file of an unknown kind'


def is_checkpoint(path: Path) -> bool:
    """Whether a file looks like one that is read here, by its first bytes and its directory."""
    kind = kind_of(path)
    if kind == 'zip':
        try:
            with open(path, 'rb') as file:
                pickle_of([info.filename for info in _directory(file)])
        except DamagedFile:
            return False
    return kind in ('zip', 'pickle', 'safetensors')


_OTHER_FILES = {
    b'\x89HDF': 'an HDF5 file (Keras)',
    b'\x1f\x8b': 'a gzip archive',
    b'\xfd7zXZ': 'an xz archive',
    b'BZh': 'a bzip2 archive',
    b'\x93NUMPY': 'a NumPy array',
    b'\x89PNG': 'a picture',
    b'\xff\xd8\xff': 'a picture',
    b'GGUF': 'a GGUF file',
}


def not_a_checkpoint(path: str | Path, key: str, error: Exception | str) -> CheckpointError:
    """The error for a file that is damaged or something else."""
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    path = Path(path)
    size = f' ({path.stat().st_size} bytes)' if path.is_file() else ''
    return CheckpointError(
        f'{key}={str(path)!r}{size} is damaged, truncated or not a PyTorch checkpoint '
        f'({reason}). Copy or download the file again.'
    )


def few(items: Sequence[str], count: int = 8) -> str:
    """The first of many items, and how many more there are."""
    more = f' and {len(items) - count} more' if len(items) > count else ''
    shown = (item if item.isprintable() else ascii(item) for item in items[:count])
    return ', '.join(item[:200] for item in shown) + more


def buffer_of(data: torch.Tensor) -> memoryview:
    """The memory of a tensor, to read and write."""
    return memoryview(cast(Any, data.numpy()))  # Python 3.12 is the first to type buffers


class Stream:
    """Reads a file once, from its begin to its end, past an optional hash."""

    def __init__(self, file: BufferedReader, digest: Any = None) -> None:
        self.file = file
        self.digest = digest
        self.size = file.seek(0, 2)
        self.position = file.seek(0)

    def fill(self, target: memoryview) -> None:
        """Reads as many bytes as ``target`` holds into it."""
        if self.file.readinto(target) < len(target):
            raise DamagedFile('the file ends too early')
        if self.digest is not None:
            self.digest.update(target)
        self.position += len(target)

    def exactly(self, count: int) -> bytes:
        data = self.read(count)
        if len(data) < count:
            raise DamagedFile('the file ends too early')
        return data

    def skip_to(self, position: int) -> None:
        while self.position < position:
            self.exactly(min(_BLOCK, position - self.position))

    # An unpickler reads with these two. A file's own read would reserve what it is asked for.

    def read(self, count: int) -> bytes:
        return self._seen(self.file.read(max(0, min(count, self.size - self.position))))

    def readline(self) -> bytes:
        return self._seen(self.file.readline())

    def _seen(self, data: bytes) -> bytes:
        if self.digest is not None:
            self.digest.update(data)
        self.position += len(data)
        return data


def records(
    file: BufferedReader, digest: Any = None, contents: dict[str, torch.Tensor] | None = None
) -> list[str]:
    """Walks once through a zip archive as ``torch.save`` writes it, and checks every record.

    Args:
        file: opened for reading bytes.
        digest: a hash of :mod:`hashlib` that is to see every byte of the file.
        contents: takes the bytes of each record by its name, tensors of type uint8.

    Returns:
        The names of the records.

    Raises:
        DamagedFile: where contents and directory contradict each other, or records are compressed
            or overlap, so that they would unpack to more than the file itself.
    """
    entries = _directory(file)
    stream = Stream(file, digest)
    for info in entries:
        start = info.header_offset
        if not stream.position <= start <= start + 30 + info.file_size <= stream.size:
            raise _damaged_record(info, 'overlaps another one or the end of the file')
        stream.skip_to(start)
        header = stream.exactly(30)
        if not header.startswith(b'PK\x03\x04'):
            raise _damaged_record(info, 'is not where the directory says')
        stream.exactly(sum(struct.unpack('<HH', header[26:])))  # its name and extra field
        if stream.position + info.file_size > stream.size:
            raise _damaged_record(info, 'is longer than the file')
        if _checksum(stream, info, contents) != info.CRC:
            raise _damaged_record(info, 'does not have its checksum')
    stream.skip_to(stream.size)
    return [info.filename for info in entries]


def pickle_of(names: list[str]) -> str:
    """Name of the record that holds everything but the numbers.

    Raises:
        DamagedFile: if the archive is none of ``torch.save``.
    """
    found = [name for name in names if re.fullmatch(r'([^/]+/)?data\.pkl', name)]
    if len(found) != 1:
        raise DamagedFile(f'a zip archive with {len(found)} records called data.pkl')
    root = found[0].removesuffix('data.pkl')
    if f'{root}constants.pkl' in names:
        raise DamagedFile('a TorchScript archive, which holds a program instead of a state dict')
    return found[0]


def _checksum(stream: Stream, info: zipfile.ZipInfo, contents: dict | None) -> int:
    """Reads a record, into ``contents`` if that is given."""
    keep = contents is not None
    data = torch.empty(info.file_size if keep else min(info.file_size, _BLOCK), dtype=torch.uint8)
    if contents is not None:
        contents[info.filename] = data
    view, checksum = buffer_of(data), 0
    for begin in range(0, info.file_size, _BLOCK):
        count = min(_BLOCK, info.file_size - begin)
        block = view[begin : begin + count] if keep else view[:count]
        stream.fill(block)
        checksum = zlib.crc32(block, checksum)
    return checksum


def _directory(file: BufferedReader) -> list[zipfile.ZipInfo]:
    """The entries of a zip archive in the order of the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except Exception as error:  # damaged directories make zipfile stumble in many ways
        raise DamagedFile(f'the directory of the zip archive: {error}') from error
    pickle_of([info.filename for info in entries])  # which says what else the archive may be
    names = set()
    for info in entries:
        if info.filename in names:
            raise _damaged_record(info, 'is there twice')
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise _damaged_record(info, 'is compressed, which torch.save never does')
        if info.flag_bits & 1:
            raise _damaged_record(info, 'is encrypted')
        names.add(info.filename)
    return entries


def _damaged_record(info: zipfile.ZipInfo, what: str) -> DamagedFile:
    return DamagedFile(f'the record {info.filename[:80]!r} {what}')
