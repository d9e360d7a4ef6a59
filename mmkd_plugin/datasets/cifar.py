"""CIFAR-100 in memory."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torchvision.datasets as tv

from ..checkpoints.file import Stream
from ..checkpoints.plain_objects import RefusedObject
from ..checkpoints.safe_pickle import PlainUnpickler
from ..checks import check_bool
from ..functional.checks import check_choice
from ..registry import DATASETS
from .arrays import ArrayDataset


def _read_plain(file: Path) -> dict:
    """Refuses whatever is no data: other names in a file without a checksum could run code."""
    with open(file, 'rb') as opened:
        stream = Stream(opened)
        try:
            return PlainUnpickler(stream, _no_tensors, stream.size, encoding='latin1').load()
        except RefusedObject as error:
            raise pickle.UnpicklingError(f'it names {error}, which is no data') from None


def _no_tensors(*_: Any) -> NoReturn:
    raise pickle.UnpicklingError('it holds tensors')


class _AnyRowOrder(tv.CIFAR100):
    """torchvision's reader without the checksums, which only the official files pass."""

    train_list = [[name, None] for name, _ in tv.CIFAR100.train_list]
    test_list = [[name, None] for name, _ in tv.CIFAR100.test_list]
    meta = {**tv.CIFAR100.meta, 'md5': None}


@DATASETS.register_module()
class CIFAR100(ArrayDataset):
    """CIFAR-100: 50,000 train and 10,000 test images, 32x32, 100 classes (Krizhevsky 2009).

    Read by torchvision from ``data_root/cifar-100-python/{train,test,meta}``.

    Args:
        data_root: folder that holds ``cifar-100-python``, or that folder itself.
        split: ``'train'`` or ``'test'``.
        check_md5: compare the files with the official checksums. Files of the same images in
            another row order, such as those unpacked from a lossless archive, do not pass; switch
            the check off for them and say so beside your results.
        download: get the official files (161 MiB) if they are not there.
        indices: see :class:`ArrayDataset`.
        num_samples: see :class:`ArrayDataset`.

    Raises:
        FileNotFoundError: no data there, with the ways to get them.
        ValueError: a damaged file, or one that fails the checksum.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str = 'train',
        check_md5: bool = True,
        download: bool = False,
        indices: Sequence[int] | None = None,
        num_samples: int | None = None,
    ) -> None:
        check_choice('split', split, ('train', 'test'))
        check_bool(check_md5, 'check_md5')
        check_bool(download, 'download')
        folder = Path(data_root).expanduser()
        if folder.name != tv.CIFAR100.base_folder:
            folder = folder / tv.CIFAR100.base_folder
        if not download:
            _check_files(folder)
        reader = tv.CIFAR100 if check_md5 else _AnyRowOrder
        try:
            if not check_md5:
                for name in (split, 'meta'):
                    _read_plain(folder / name)  # torchvision reads whatever is in there
            read = reader(str(folder.parent), train=split == 'train', download=download)
            labels = np.asarray(read.targets, dtype=np.int64)
        except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError,
                ImportError, IndexError) as error:  # fmt: skip
            raise ValueError(
                f'{_damaged(folder, split)} is damaged ({type(error).__name__}: {error}). Remove '
                f'the folder {folder} and get the data again, for example with download=True.'
            ) from error
        except OSError as error:
            raise FileNotFoundError(
                f'CIFAR-100 could not be {"downloaded to" if download else "read from"} {folder} '
                f'({error}). Get cifar-100-python.tar.gz of '
                'https://www.cs.toronto.edu/~kriz/cifar.html by hand and unpack it into data_root.'
            ) from error
        except RuntimeError as error:  # torchvision's word for a failed checksum
            raise ValueError(
                f'The files in {folder} are not the official ones, going by their MD5 checksums '
                f'({error}). If they are known to hold the same images in another row order, set '
                'check_md5=False; if not, remove the folder and set download=True.'
            ) from error
        images = np.ascontiguousarray(read.data.transpose(0, 3, 1, 2))
        super().__init__(images, labels, read.classes, indices, num_samples)


def _check_files(folder: Path) -> None:
    missing = [name for name in ('train', 'test', 'meta') if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'CIFAR-100 is not complete in {folder}, which lacks {", ".join(missing)}. Point '
            'data_root (CIFAR100_ROOT for the configs of this project) to where it is, set '
            'download=True, or unpack cifar-100-python.tar.gz of '
            "https://www.cs.toronto.edu/~kriz/cifar.html into data_root. Without it, type='"
            "SklearnDigits' is a set that needs no download."
        )


def _damaged(folder: Path, split: str) -> Path:
    """Which of the two files that were read is at fault."""
    for name, key in ((split, 'fine_labels'), ('meta', 'fine_label_names')):
        try:
            _read_plain(folder / name)[key]
        except Exception:
            return folder / name
    return folder / split
