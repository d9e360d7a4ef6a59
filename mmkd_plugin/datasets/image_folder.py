"""A folder of images, decoded once and kept in memory."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..checks import nearest
from ..files import whole_file
from ..registry import DATASETS
from .arrays import ArrayDataset, as_names
from .class_folders import class_names, folders, list_images, open_rgb


@DATASETS.register_module()
class CachedImageFolder(ArrayDataset):
    """Images in the ``ImageFolder`` layout, ``data_root/split/<class>/<image>``, at one size.

    Each image is decoded once, its short side resized to ``size`` (bilinear, antialiased) and the
    centre cut out, which takes 3 * size^2 bytes per image in memory. Random crops are the data
    preprocessor's business: make ``size`` a little larger than what they cut. For sets that do not
    fit, use ``TorchvisionDataset(name='ImageFolder', ...)``.

    Args:
        data_root: folder of the splits.
        split: a sub-folder of it; '' if the classes lie in ``data_root`` itself.
        size: height and width of the images in memory, in pixels.
        classes: names of the class folders, in the order of their numbers; by default those of the
            split ``train`` beside this one, in alphabetical order, or else this split's own.
        cache: folder for the decoded arrays, used by later runs until a file's name, size or date
            changes; None is ``data_root/.cache``, False keeps no file.
        indices: see :class:`ArrayDataset`.
        num_samples: see :class:`ArrayDataset`.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
        ValueError: bad ``size``, a class folder that is not in ``classes``, a split whose classes
            cannot be numbered as in training, or an image that cannot be decoded, by name.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str = 'train',
        size: int = 144,
        classes: Sequence[str] | None = None,
        cache: str | Path | bool | None = None,
        indices: Sequence[int] | None = None,
        num_samples: int | None = None,
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f'size must be a whole number of pixels, got {size!r}.')
        root = Path(data_root).expanduser()
        folder = root / split if split else root
        if not folder.is_dir():
            raise FileNotFoundError(_how_to_get(root, split))
        classes = class_names(folder) if classes is None else as_names(classes)
        listed = list_images(folder, classes)
        if not listed:
            raise FileNotFoundError(
                f'{folder} holds no image. Expected is {folder}/<class>/<image>, with one of the '
                f'extensions {", ".join(IMG_EXTENSIONS)}.'
            )
        files, labels = zip(*listed)
        keep = None
        if cache is not False:
            name = f'{split.replace("/", "_") or "all"}-{size}.npz'
            place = root / '.cache' if cache is None or cache is True else Path(cache)
            keep = place.expanduser() / name
        images = load_or_decode(files, size, keep, folder)
        super().__init__(images, labels, classes, indices, num_samples)


def load_or_decode(
    files: Sequence[Path], size: int, cache: Path | None, folder: Path
) -> np.ndarray:
    """uint8 (N, 3, size, size), from the file ``cache`` if it was made of these very files."""
    key = _fingerprint(files, size, folder)
    images = None if cache is None else _read_cache(cache, key, (len(files), 3, size, size))
    if images is None:
        images = np.stack([decode(file, size) for file in files])
        if cache is not None:
            _write_cache(cache, key, images)
    return images


def decode(file: Path, size: int) -> np.ndarray:
    """One image as uint8 (3, size, size): short side resized to ``size``, centre cut out."""
    try:
        image = open_rgb(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'{file} cannot be decoded ({error}). Replace or remove it.') from error
    width, height = image.size
    short = min(width, height)
    # What the centre square of the resized image shows, so that resizing and cropping are one step.
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _how_to_get(root: Path, split: str) -> str:
    hint = f'Expected is {root / split}/<class>/<image>, the layout of torchvision.ImageFolder.'
    if not root.is_dir():
        return (
            f'data_root {root} does not exist. {hint} Point data_root to your own images, or get '
            "such a set first; type='SklearnDigits' is a set that needs no download."
        )
    names = folders(root)
    near = f'{nearest(split, names)}.' if names else 'it has no folder at all.'
    return f'{root} has no folder {split!r} (split); {near} {hint}'


def _fingerprint(files: Sequence[Path], size: int, folder: Path) -> str:
    """Changes with the size and with any file's name, length or date."""
    listed = []
    for file in files:
        stat = file.stat()
        listed.append((file.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    text = json.dumps(dict(version=2, size=size, files=listed))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_cache(cache: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The images, or None if the file is absent, of another key, or damaged."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored['key']) != key:
                return None
            images = stored['images']
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _write_cache(cache: Path, key: str, images: np.ndarray) -> None:
    """Keeps the images for the next run, or warns that it could not."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(cache) as part, part.open('wb') as file:
            np.savez(file, key=np.array(key), images=images)
    except OSError as error:
        print_log(
            f'The decoded images could not be kept in {cache} ({error}); the next run will decode '
            'them again. Set cache to a writable folder, or to False.',
            'current',
            logging.WARNING,
        )
