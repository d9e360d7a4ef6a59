"""torchvision's data sets, decoded from disk by the loader's workers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets as tv
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from ..checks import check_bool, check_keys, nearest, split_type
from ..registry import DATASETS
from .arrays import as_names, check_labels
from .class_folders import class_names, folders, list_images, open_rgb
from .views_transform import TeacherStudentViews

_SPLIT = re.compile(r'(?P<name>\w*)(?:\[(?P<begin>\d*)(%?):(?P<end>\d*)(%?)\])?')
_LABELS = ('targets', '_labels', 'labels')


@DATASETS.register_module()
class TorchvisionDataset(Dataset):
    """A data set of ``torchvision.datasets`` with transforms of ``torchvision.transforms.v2``.

    Use it with ``collate_fn=dict(type='stack_batch')`` and, so that augmentation differs from epoch
    to epoch, ``worker_init_fn=dict(type='epoch_worker_seed')``. Images are uint8; converting to
    float and normalising are the data preprocessor's.

    Args:
        name: class in ``torchvision.datasets``: ``'ImageFolder'``, ``'ImageNet'``,
            ``'Flowers102'``, ``'OxfordIIITPet'``, ``'Food101'``, ``'SUN397'``, ...
        data_root: its ``root``.
        split: its ``split`` (``'train'``, ...), for ``ImageFolder`` a sub-folder, '' for sets that
            have none. May end with a slice in per cent or images: ``'train[:90%]'`` and
            ``'train[90%:]'`` are two disjoint parts, cut from one fixed random order of the images,
            the same on every machine.
        transforms: list such as ``[dict(type='RandomResizedCrop', size=224, antialias=False),
            dict(type='RandomHorizontalFlip')]``; types of ``torchvision.transforms.v2``, or
            :class:`TeacherStudentViews`. They get a uint8 tensor (3, H, W), RGB.
        download: let torchvision download the set if it is not there.
        classes: class names where the set does not tell them. For ``'ImageFolder'`` the names of
            the class folders in the order of their numbers; by default those of the split ``train``
            beside this one, or else this split's own.
        **kwargs: further arguments of the torchvision class.

    Raises:
        FileNotFoundError: no data there, with the ways to get them.
        ValueError: unknown name, split, transform or argument, with the nearest valid ones.
    """

    def __init__(
        self,
        name: str,
        data_root: str | Path,
        split: str = 'train',
        transforms: Sequence[dict] = (),
        download: bool = False,
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        cls = _dataset_class(name)
        check_bool(download, 'download')
        found = _SPLIT.fullmatch(split)
        if found is None:
            raise ValueError(
                f"split must be a name with or without a slice, such as 'train', 'train[:90%]' or "
                f"'train[100:]', got {split!r}."
            )
        self.name = f'{name} ({split})'
        self.transform = build_transforms(transforms)
        names = None if classes is None else as_names(classes)
        if cls is tv.ImageFolder:
            cls, kwargs = ImageFolder, dict(kwargs, classes=names)
        self.source = _open(cls, Path(data_root).expanduser(), found['name'], download, kwargs)
        self.chosen = _slice(len(self.source), found, split)
        labels = _labels(self.source)
        classes = names or _classes(self.source, labels)
        if classes is None:
            raise ValueError(f'{name} does not tell its class names; give classes=[...].')
        if labels is not None:
            check_labels(torch.as_tensor(labels), classes)
        self.metainfo: dict[str, Any] = dict(classes=tuple(classes))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict:
        """``inputs`` uint8 (3, H, W), ``teacher_inputs`` if the transforms made two views."""
        number = int(self.chosen[index])
        try:
            image, label = self.source[number]
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f'Image {number} of {self.name} cannot be decoded: {error}. Replace or remove it.'
            ) from error
        views = self.transform(tvf.pil_to_tensor(image.convert('RGB')))
        student, teacher = views if isinstance(views, tuple) else (views, None)
        item = dict(inputs=student, data_samples=dict(gt_label=int(label), index=index))
        if teacher is not None:
            item['teacher_inputs'] = teacher
        return item


class ImageFolder(tv.ImageFolder):
    """torchvision's, with class numbers that all splits share and without hidden files."""

    def __init__(self, root: str, classes: Sequence[str] | None = None, **kwargs: Any) -> None:
        self.names = classes
        super().__init__(root, **kwargs)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        own = folders(Path(directory))
        if not own:
            return super().find_classes(directory)  # says that there is none
        # Names that are no folders are another way to call the classes.
        given = list(self.names or ())
        names = class_names(Path(directory)) if set(given).isdisjoint(own) else given
        return names, {name: i for i, name in enumerate(names)}

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: Any = None,
        is_valid_file: Any = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        listed = list_images(Path(directory), list(class_to_idx), is_valid_file)
        if not listed:
            raise FileNotFoundError(f'no image in any of the {len(class_to_idx)} class folders')
        return [(str(path), label) for path, label in listed]


def build_transforms(configs: Sequence[dict]) -> Any:
    """Composes ``[dict(type='Resize', size=256), ...]``.

    Raises:
        ValueError: unknown type or argument, with the nearest valid ones.
    """
    if isinstance(configs, dict):
        raise ValueError(f'transforms must be a list of dicts, got one dict: {configs!r}.')
    steps = [_build_transform(config, f'transforms[{i}]') for i, config in enumerate(configs)]
    for i, step in enumerate(steps[:-1]):
        if isinstance(step, TeacherStudentViews):
            raise ValueError(f'transforms[{i}]: TeacherStudentViews must come last.')
    return _Chain(steps)


class _Chain:
    """Like ``v2.Compose``, which takes no empty list."""

    def __init__(self, steps: Sequence) -> None:
        self.steps = list(steps)

    def __call__(self, image: Tensor) -> Any:
        for step in self.steps:
            image = step(image)
        return image


def _build_transform(config: Any, where: str) -> Any:
    if callable(config):
        return config
    kind, kwargs = split_type(config, where, 'CenterCrop')
    name = str(kind).removeprefix('mmkd_plugin.')
    valid = dict(inspect.getmembers(v2, inspect.isclass), TeacherStudentViews=TeacherStudentViews)
    valid = {k: cls for k, cls in valid.items() if issubclass(cls, torch.nn.Module)}
    if name not in valid:
        raise ValueError(
            f'{where} names the transform {name!r}, which torchvision.transforms.v2 does not have; '
            f'{nearest(name, valid)}.'
        )
    parameters = inspect.signature(valid[name]).parameters
    check_keys(kwargs, parameters, f'{where} ({name})')
    if 'antialias' in parameters:
        kwargs.setdefault('antialias', True)  # torchvision's default was another before 0.17
    if isinstance(kwargs.get('interpolation'), str):
        kwargs['interpolation'] = InterpolationMode(kwargs['interpolation'])
    try:
        return valid[name](**kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where} ({name}): {error}') from error


def _dataset_class(name: str) -> type:
    valid = {
        n: cls
        for n, cls in inspect.getmembers(tv, inspect.isclass)
        if issubclass(cls, Dataset) and 'root' in inspect.signature(cls).parameters
    }
    if name not in valid:
        raise ValueError(
            f'name={name!r} is not a data set of torchvision.datasets; {nearest(str(name), valid)}.'
        )
    return valid[name]


def _open(cls: Any, root: Path, split: str, download: bool, kwargs: dict) -> Any:
    # All named arguments of the class and its bases: ImageNet passes some on as **kwargs.
    valid = {
        p for base in cls.__mro__ for p in inspect.signature(base.__init__).parameters
        if p not in ('self', 'root', 'split', 'download', 'train', 'args', 'kwargs')
    }  # fmt: skip
    check_keys(kwargs, valid, f'TorchvisionDataset ({cls.__name__})')
    own = inspect.signature(cls).parameters
    kwargs = dict(kwargs)
    if 'loader' in valid:
        kwargs.setdefault('loader', open_rgb)  # torchvision's makes grey images of 16 bits white
    if 'split' in own and split:
        kwargs['split'] = split
    elif 'train' in own and split in ('train', 'test'):
        kwargs['train'] = split == 'train'
    elif cls is ImageFolder:
        root = root / split
    elif split:
        raise ValueError(
            f"{cls.__name__} has no split {split!r}; write split='' for all images or a slice of "
            "them such as split='[:90%]'."
        )
    if 'download' in own:
        kwargs['download'] = download
    try:
        return cls(root=str(root), **kwargs)
    except (RuntimeError, OSError) as error:  # OSError: no such file, or no connection
        way = 'Set download=True' if 'download' in own else 'Download it from its official site'
        if download and 'download' in own:
            way = 'Download it from its official site by hand'
        if cls is ImageFolder:
            way = f'Expected is {root}/<class>/<image>; put your images there'
        raise FileNotFoundError(
            f'{cls.__name__} could not be read from {root} ({str(error).rstrip(".")}). {way}, or '
            "point data_root to where it is. Without any data, type='SklearnDigits' is a set that "
            'needs no download.'
        ) from error


def _slice(count: int, found: re.Match, split: str) -> np.ndarray:
    """Positions of the slice, ascending."""
    if '[' not in split:
        return np.arange(count)

    def bound(text: str, per_cent: str, default: int) -> int:
        if not text:
            return default
        return round(count * int(text) / 100) if per_cent else int(text)

    begin, end = bound(found['begin'], found[3], 0), bound(found['end'], found[5], count)
    if not 0 <= begin < end <= count:
        raise ValueError(f'{split!r} is no part of {count} images: it goes from {begin} to {end}.')
    # Files are usually listed by class, so a slice of that order would lack classes. The legacy
    # generator, because NumPy guarantees its numbers for all versions to come.
    order = np.random.RandomState(0).permutation(count)
    return np.sort(order[begin:end])


def _labels(source: Any) -> list[int] | None:
    for name in _LABELS:
        if getattr(source, name, None) is not None:
            return [int(label) for label in getattr(source, name)]
    return None


def _classes(source: Any, labels: list[int] | None) -> list[str] | None:
    names = getattr(source, 'classes', None)
    if names is not None:  # those of ImageNet are tuples of synonyms
        return [n if isinstance(n, str) else ', '.join(n) for n in names]
    return None if labels is None else [str(i) for i in range(max(labels) + 1)]
