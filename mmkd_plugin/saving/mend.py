"""Finds the checkpoint from which a killed run can go on."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.logging import print_log

from ..checkpoints.load import load_file, verify_file
from ..errors import CheckpointError
from .finite import not_finite

_NAME = re.compile(r'(epoch|iter)_(\d+)\.pth')
_POINTER = 'last_checkpoint'
_UNREADABLE = 'cannot be read'


def mend_last_checkpoint(folder: str | Path) -> Path | None:
    """Points ``last_checkpoint`` to a checkpoint that is sound and finite.

    That is the one it names, or else the newest of the folder that is. Newer ones that cannot be
    used get the ending ``.damaged``; no file is ever removed. Call it before a Runner with
    ``resume=True`` trains. Of several ranks only the first acts.

    Args:
        folder: the work dir.

    Returns:
        The checkpoint; None where the folder has never had one, or on other ranks.

    Raises:
        CheckpointError: if there are checkpoints, but none that can be used. Nothing is renamed
            then.
    """
    folder = Path(folder)
    if int(os.environ.get('RANK', get_rank())) != 0 or not folder.is_dir():
        return None
    pointer = folder / _POINTER
    named = _named(pointer)
    candidates = _candidates(folder, named)
    if not candidates and not pointer.exists():
        return None
    reasons: dict[Path, str] = {}
    for path in candidates:
        reason = problem(path)
        if reason is None:
            _settle(pointer, path, reasons)
            return path
        reasons[path] = reason
    looked = '; '.join(f'{path.name} {reason}' for path, reason in reasons.items())
    raise CheckpointError(
        f'--resume found no checkpoint in {folder} that can be used '
        f'({looked or _dangling(named)}). Nothing was changed there. Resume from another file '
        'with --resume FILE, or start anew without --resume.'
    )


def check_resume(folder: str | Path, file: str | Path | None) -> None:
    """Makes sure that a run can be resumed from ``file``, or from the last one in ``folder``.

    Raises:
        CheckpointError: if it cannot.
    """
    if file is None:
        mend_last_checkpoint(folder)
    elif Path(file).exists() and (reason := problem(Path(file))) is not None:
        raise CheckpointError(
            f'{file} {reason}. Nothing was changed; resume from another file, or give --resume '
            'without one: it goes on from the newest of the work dir that can be used.'
        )


def _settle(pointer: Path, path: Path, reasons: dict[Path, str]) -> None:
    for bad, reason in reasons.items():
        # What cannot be read now (permissions, a network file system) may be sound.
        kept = '' if reason.startswith(_UNREADABLE) else f' It is kept as {_set_aside(bad).name}.'
        _warn(f'{bad} {reason}.{kept}')
    if _read(pointer) == path:
        return
    if pointer.exists() and not pointer.is_file():
        _warn(f'{pointer} is no file; it is kept as {_set_aside(pointer).name}.')
    pointer.write_text(str(path))
    _warn(f'{pointer} did not name a checkpoint that can be used; going on from {path}.')


def _warn(message: str) -> None:
    print_log(message, 'current', logging.WARNING)


def _named(pointer: Path) -> Path | None:
    """The file that ``last_checkpoint`` names, seen from here or lying beside it."""
    path = _read(pointer)
    if path is None or path.exists():
        return path
    beside = pointer.parent / path.name  # of a work dir that was moved
    return beside if beside.exists() else path


def _read(pointer: Path) -> Path | None:
    try:
        text = pointer.read_bytes().decode().strip()
        Path(text).exists()  # refuses zero bytes
    except (OSError, ValueError):  # missing, a folder, junk
        return None
    return Path(text) if text else None


def _dangling(named: Path | None) -> str:
    return f'{_POINTER} names {named}, which does not exist' if named else f'{_POINTER} names none'


def _candidates(folder: Path, named: Path | None) -> list[Path]:
    """Where to look, the best first: the file that is named, then the others from the newest."""
    named = named if named is not None and named.exists() else None
    found: list[Path] = []
    for place in dict.fromkeys([folder.resolve(), *([named.parent.resolve()] if named else [])]):
        files = [(m, path) for path in place.iterdir() if (m := _NAME.fullmatch(path.name))]
        newest = {m.group(1): 0.0 for m, _ in files}
        for match, path in files:
            newest[match.group(1)] = max(newest[match.group(1)], path.stat().st_mtime)
        # Epochs cannot be compared with iterations: the kind that was saved last goes first.
        files.sort(key=lambda item: (newest[item[0].group(1)], int(item[0].group(2))), reverse=True)
        found += [folder / path.name if place == folder.resolve() else path for _, path in files]
    if named:
        found = [named, *(path for path in found if path.resolve() != named.resolve())]
    return found


def problem(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None."""
    if path.is_dir():  # DeepSpeed writes folders; only it can read them
        return None if any(path.iterdir()) else 'is an empty folder'
    try:
        path.open('rb').close()
    except OSError as error:
        return f'{_UNREADABLE} ({error.strerror or error})'
    try:
        checkpoint = load_file(path, 'last_checkpoint')
    except CheckpointError:
        try:
            verify_file(path)
        except CheckpointError:
            return 'is truncated, damaged or no checkpoint'
        return None  # whole, but with objects of the user's own: reading them is up to the run
    if not isinstance(checkpoint, dict) or 'iter' not in (checkpoint.get('meta') or {}):
        return 'is no checkpoint of a training run'
    exempt = checkpoint['meta'].get('not_finite')
    bad = not_finite(checkpoint, exempt or (), nan_only=exempt is None)
    return f'holds NaN or Inf, as in {bad[0]}' if bad else None


def _set_aside(path: Path) -> Path:
    target = path.with_name(path.name + '.damaged')
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f'{path.name}.damaged{count}')
    return path.rename(target)
