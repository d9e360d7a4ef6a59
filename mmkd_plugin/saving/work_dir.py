"""The work dir of a run: whether it can be written to, and one run at a time in it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the file is then not locked

LOCK = 'run.lock'


class WorkDirError(OSError):
    """A work dir in which this run cannot train; the message says what to do."""


@contextmanager
def claimed(work_dir: str | Path) -> Iterator[None]:
    """Holds a work dir for one run; of several ranks the first one claims it.

    The claim is a lock of the operating system on ``run.lock``, which names its process and host.
    It ends with the process, however that ends. NFS (version 4, or 3 with lockd) keeps it
    across hosts; a file system that has no locks gets a warning instead.

    Raises:
        WorkDirError: if nothing can be written there, or another run holds it.
    """
    folder = Path(work_dir)
    _try_writing(folder)
    file = _lock(folder / LOCK)
    try:
        yield
    finally:
        if file is not None:
            Path(file.name).unlink(missing_ok=True)
            file.close()


def _try_writing(folder: Path) -> None:
    """A block of zeros shows a full disk; quotas count it, too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
    except OSError as error:
        raise WorkDirError(
            f'Nothing can be written to the work dir {folder} ({error.strerror or error}). Give '
            'another one with --work-dir, or make room there.'
        ) from error


def _lock(path: Path):
    """The open lock file, or None where the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115 - open as long as the run
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or 'another process'
            file.close()
            raise WorkDirError(
                f'The work dir {path.parent} is in use by another run ({holder}): two runs would '
                "overwrite each other's checkpoints. Give this one another --work-dir, or end the "
                'other first.'
            ) from None
        except OSError as error:
            print_log(f'{path.parent} cannot be locked ({error}): start no second run there.')
            file.close()
            return None
        # The run before may have removed the file between the two lines above.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            file.flush()
            return file
        file.close()
