"""A COCO-format detection set made from the real handwritten digits that scikit-learn carries.

The 1,797 scans (8x8 grey levels, 10 classes) are placed, stretched and turned, on textured
backgrounds. Every image comes with boxes, instance masks (RLE) and a semantic map, so one
set serves detectors, instance and semantic segmentation. Train and val use disjoint scans. Nothing
is downloaded.

The folder that :func:`ensure_digits` makes::

    digits.json                  the settings it was made with; written last
    annotations/{train,val}.json COCO instances; category ids 1..10 are the digits '0'..'9'
    {train,val}/000001.png       images
    semantic/{train,val}/...png  0 = background, digit + 1 elsewhere
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np

from .digits_scene import (
    SPLITS,
    DigitsSpec,
    annotate,
    draw_image,
    enlarge,
    load_scans,
    split_scans,
)

CLASSES = tuple(str(digit) for digit in range(10))
PALETTE = (
    (230, 25, 75), (60, 180, 75), (255, 200, 25), (0, 130, 200), (245, 130, 48),
    (145, 30, 180), (70, 200, 230), (240, 50, 230), (150, 210, 60), (170, 110, 40),
)  # fmt: skip
STAMP = 'digits.json'


def _write_split(
    folder: Path,
    split: str,
    spec: DigitsSpec,
    scans: tuple[np.ndarray, np.ndarray, np.ndarray],
    advance: Callable[[], None],
) -> None:
    ink, labels, pool = scans
    (folder / split).mkdir(parents=True)
    (folder / 'semantic' / split).mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(1, getattr(spec, split) + 1):
        # Each image has a generator of its own: more images leave the first ones as they were.
        rng = np.random.default_rng([spec.seed, SPLITS.index(split), number])
        image, instances, digits = draw_image(ink, labels, pool, rng, spec)
        name = f'{number:06d}.png'
        found, semantic = annotate(instances, digits)
        _write_png(folder / split / name, image[..., ::-1])
        _write_png(folder / 'semantic' / split / name, semantic)
        images.append(
            dict(id=number, file_name=name, width=spec.image_size, height=spec.image_size)
        )
        for entry in found:
            annotations.append(dict(id=len(annotations) + 1, image_id=number, **entry))
        advance()
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(CLASSES)]
    info = dict(description='Handwritten digits of scikit-learn on textured backgrounds',
                settings=spec.to_dict())  # fmt: skip
    (folder / 'annotations').mkdir(exist_ok=True)
    with open(folder / 'annotations' / f'{split}.json', 'w', encoding='utf-8') as file:
        content = dict(info=info, images=images, annotations=annotations, categories=categories)
        json.dump(content, file)


def _write_png(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f'Cannot write {path}; is the disk full?')


def write_digits(folder: Path, spec: DigitsSpec, progress: bool = True) -> None:
    """Writes the whole set into a new ``folder``; :func:`ensure_digits` is the safe way in."""
    from rich import progress as bars

    scans, labels = load_scans()
    pools = split_scans(labels, spec)
    ink = enlarge(scans)
    folder.mkdir(parents=True)
    columns = (
        bars.TextColumn('{task.description}'),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, disable=not progress) as bar:
        task = bar.add_task('Making the digits set', total=spec.train + spec.val)
        for split in SPLITS:
            _write_split(
                folder, split, spec, (ink, labels, pools[split]), lambda: bar.advance(task)
            )
    with open(folder / STAMP, 'w', encoding='utf-8') as file:
        json.dump(spec.to_dict(), file, indent=2)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds an inter-process lock, which the system frees when its holder dies.

    Yields False where the file system has no locks; renaming still keeps the result whole then.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield False
        return
    with open(path, 'a', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _is_made(root: Path, spec: DigitsSpec | None) -> bool:
    """Whether ``root`` holds the set of these settings (None: any set).

    Raises:
        FileExistsError: if it holds a set of other settings, or something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        with open(root / STAMP, encoding='utf-8') as file:
            there = json.load(file)
    except (OSError, ValueError) as error:
        raise FileExistsError(
            f'{root} exists but is no digits set (no readable {STAMP}); '
            'choose another data_root, or remove that folder.'
        ) from error
    if spec is not None and there != (wanted := spec.to_dict()):
        keys = sorted(set(there) | set(wanted))
        changes = [f'{key} is {there.get(key)!r} there, {wanted.get(key)!r} asked'
                   for key in keys if there.get(key) != wanted.get(key)]  # fmt: skip
        raise FileExistsError(
            f'{root} holds a digits set of other settings ({"; ".join(changes)}); choose another '
            f'data_root, or make it again with: {_command(root, spec)}'
        )
    return True


def _command(root: Path, spec: DigitsSpec) -> str:
    """The command line that replaces ``root`` by the set of these settings."""
    words = ['python', 'tools/make_digits.py', '--out', str(root), '--force']
    for field in fields(spec):
        value = getattr(spec, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f'--{field.name.replace("_", "-")}', *map(str, values)]
    return shlex.join(words)


def ensure_digits(
    root: str | os.PathLike = 'data/digits',
    spec: DigitsSpec | dict | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Makes the digits set in ``root`` unless it is there; many processes may call it at once.

    The set is written beside ``root`` and moved there when whole, so an interrupted run leaves
    nothing that could be taken for a set.

    Args:
        root: The folder of the set.
        spec: A :class:`DigitsSpec`, or a dict of some of its settings. None: any set that is there
            will do, and the default settings make a new one.
        progress: Whether to show a progress bar while it is made.
        overwrite: Whether a set of other settings is replaced instead of refused. A folder that is
            no digits set is never replaced.

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: if ``root`` holds something else, or a set made with other settings.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = ensure_digits(folder + '/digits', dict(train=2, val=1), progress=False)
        ...     sorted(path.name for path in root.iterdir())
        ['annotations', 'digits.json', 'semantic', 'train', 'val']
    """
    if isinstance(spec, dict):
        spec = DigitsSpec.from_dict(spec)
    root = Path(root)
    if not overwrite and _is_made(root, spec):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent / f'.{root.name}.lock') as alone:
        if alone:  # nobody else is writing: what lies here was left by an interrupted run
            for stale in root.parent.glob(f'.{root.name}.part-*'):
                shutil.rmtree(stale, ignore_errors=True)
        try:
            if _is_made(root, spec):  # another process made it while this one waited
                return root
        except FileExistsError:
            if not overwrite or not (root / STAMP).is_file():
                raise
        _make(root, spec, progress)
    return root


def _make(root: Path, spec: DigitsSpec | None, progress: bool) -> None:
    """Writes the set beside ``root`` and moves it there when it is whole."""
    part = root.parent / f'.{root.name}.part-{os.getpid()}'
    try:
        write_digits(part, spec or DigitsSpec(), progress)
        if root.exists():
            shutil.rmtree(root)
        part.rename(root)
    except OSError:
        if not _is_made(root, spec):  # without locks, another process may have been first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
