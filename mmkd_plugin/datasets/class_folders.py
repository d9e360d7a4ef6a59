"""Folders of classes, ``split/<class>/<image>``: their names, their files, and reading a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS


def folders(folder: Path) -> list[str]:
    """Names of the sub-folders, without hidden ones (``.cache``, ``.ipynb_checkpoints``)."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p.name))


def class_names(folder: Path) -> list[str]:
    """The classes of a split in the order of their numbers, which are those of the training split.

    A split without images of some class has no folder for it. Counting its own folders would give
    the classes behind it other numbers than in training.

    Args:
        folder: the split's. The training split is a folder beside it that is called ``train`` or
            begins so (``training``), and shares a class with it; without one, the split's own
            folders count.

    Raises:
        ValueError: a class that the training split lacks, or several training splits that differ.
    """
    own = folders(folder)
    if _is_training(folder.name):
        return own
    training = {
        path.name: folders(path)
        for path in sorted(folder.absolute().parent.iterdir())
        if _is_training(path.name) and any(os.path.isdir(path / name) for name in own)
    }
    if 'train' in training:
        training = dict(train=training['train'])
    if not training:
        return own
    known, *others = training.values()
    missing = [name for name in own if name not in known]
    if missing or any(other != known for other in others):
        names = ', '.join(training)
        why = f'{names} lacks {missing}' if missing else f'the classes of {names} differ'
        raise ValueError(
            f'The classes of {folder} cannot be numbered as in training: {why}. Give '
            'classes=[...], all names in one order, to every split.'
        )
    return known


def _is_training(name: str) -> bool:
    return name.lower().startswith('train')


def list_images(
    folder: Path, classes: Sequence[str], accepts: Callable[[str], bool] | None = None
) -> list[tuple[Path, int]]:
    """Files and class numbers, class by class, in ``torchvision.datasets.ImageFolder``'s order.

    Hidden files and what lies in hidden folders is left out: editors keep copies there.

    Args:
        folder: holds a folder for each class.
        classes: their names; those without a folder have no images.
        accepts: tells images by their path; by default the extension does.

    Raises:
        ValueError: a folder that is none of the classes.
    """
    for name in folders(folder):
        if name not in classes:
            raise ValueError(
                f'{folder / name} is a class that is not in classes={list(classes)!r}. Add it, or '
                'leave classes out.'
            )
    accepts = accepts or (lambda path: path.lower().endswith(IMG_EXTENSIONS))
    found = []
    for label, name in enumerate(classes):
        for place, _, files in sorted(os.walk(folder / name, followlinks=True)):
            if any(map(_hidden, Path(place).relative_to(folder).parts)):
                continue
            paths = [Path(place, file) for file in sorted(files) if not _hidden(file)]
            found += [(path, label) for path in paths if accepts(str(path))]
    return found


def _hidden(name: str) -> bool:
    return name.startswith('.')


def open_rgb(file: str | Path) -> Image.Image:
    """An image file as RGB of 8 bits. Grey images of 16 bits are scaled by 1 / 257.

    Pillow's own conversion of them would cut off everything above 255.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be decoded, or its grey values have a range that
            the file does not tell.
    """
    with Image.open(file) as image:
        if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
            wide = np.asarray(image).astype(np.int64)
            return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert('RGB')
        if image.mode in ('I', 'F'):
            raise ValueError(
                f'the grey values of {file} have 32 bits (mode {image.mode!r}) and no known range; '
                'save it with 8 or 16 bits'
            )
        return image.convert('RGB')
