"""Writing beside a file and renaming, so that no reader and no kill sees half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which becomes ``path`` in one step at the end.

    After an error ``path`` stays as it was, and what was written is removed. The random part of the
    name keeps processes of several machines apart.

    Args:
        path: the file to make or to replace; its folder has to be there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder, 'note.txt')) as part:
        ...         _ = part.write_text('done')
        ...     [file.name for file in Path(folder).iterdir()]
        ['note.txt']
    """
    part = path.with_name(f'.{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
