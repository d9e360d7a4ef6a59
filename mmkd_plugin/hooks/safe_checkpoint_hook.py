"""A CheckpointHook that never gives up an old checkpoint before the new one is complete."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..registry import HOOKS


class _DeferredRemovals:
    """File backend whose removals wait until :meth:`commit`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: list = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._waiting.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self._waiting.append((self._backend.rmtree, path))

    def commit(self) -> None:
        for remove, path in self._waiting:
            remove(path)
        self._waiting.clear()


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` for full disks.

    With ``max_keep_ckpts`` or ``save_best`` the original removes the old checkpoint first and
    writes the new one afterwards; when the disk is full, both are lost. Here the old one goes when
    the new one is complete, and what a failed save left behind is removed. Arguments are those of
    ``CheckpointHook``.
    """

    def _save_checkpoint(self, runner: Runner) -> None:
        self._safely(super()._save_checkpoint, runner)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        self._safely(super()._save_best_checkpoint, runner, metrics)

    def _safely(self, save: Any, runner: Runner, *args: Any) -> None:
        plain, deferred = self.file_backend, _DeferredRemovals(self.file_backend)
        before = _checkpoints(self.out_dir)
        self.file_backend = deferred
        try:
            save(runner, *args)
        except OSError as error:
            for path in _checkpoints(self.out_dir) - before:
                path.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f'{error.strerror or error}: the checkpoint could not be '
                f'written to {self.out_dir}. The previous one is intact; make room and '
                'start again with --resume',
            ) from error
        finally:
            self.file_backend = plain
        deferred.commit()


def mend_last_checkpoint(folder: str | Path) -> None:
    """Points ``last_checkpoint`` to the newest complete checkpoint of a killed run.

    A kill while MMEngine saves can leave a truncated checkpoint (it lacks the directory at the end
    of the zip file), which is removed, or an empty ``last_checkpoint``. Call it before a Runner
    with ``resume=True`` is built.
    """
    found = [(int(m.group(1)), path) for path in _checkpoints(str(folder))
             if (m := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))]  # fmt: skip
    saved = [path for _, path in sorted(found)]
    while saved and not zipfile.is_zipfile(saved[-1]):
        saved.pop().unlink(missing_ok=True)  # other ranks may be at it, too
    pointer = Path(folder) / 'last_checkpoint'
    named = Path(pointer.read_text().strip()) if pointer.is_file() else None
    if saved and (named is None or not named.is_file()):
        pointer.write_text(str(saved[-1]))
    elif not saved and named is not None and not named.is_file():
        pointer.unlink(missing_ok=True)


def _checkpoints(folder: str) -> set[Path]:
    path = Path(folder)
    return set(path.glob('*.pth')) if path.is_dir() else set()
