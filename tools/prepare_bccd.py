#!/usr/bin/env python
"""Unpack the BCCD blood cells (MIT licence, COCO format) for ``configs/detection/bccd``.

    python tools/prepare_bccd.py                               # to data/bccd_coco
    python tools/prepare_bccd.py --archive FILE --out FOLDER

The archive is looked for in the folder $MMKD_DATA, else in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = 'bccd_coco.tar.gz'
DEFAULT_OUT = ROOT / 'data' / 'bccd_coco'
# Images per split: an unpacking that was cut off is noticed, not trained on.
SPLITS = {'train': 205, 'val': 87, 'test': 72}


def default_archive() -> Path:
    """The archive in ``$MMKD_DATA``, else in ``../shared/data`` beside the repository."""
    return Path(os.environ.get('MMKD_DATA') or ROOT.parent / 'shared' / 'data') / ARCHIVE


def is_complete(out: Path) -> bool:
    """Whether every split's annotation file and every image it names are there."""
    for split, count in SPLITS.items():
        ann_file = out / 'annotations' / f'instances_{split}.json'
        if not ann_file.is_file():
            return False
        images = json.loads(ann_file.read_text())['images']
        if len(images) != count or not all(
            (out / 'images' / i['file_name']).is_file() for i in images
        ):
            return False
    return True


def prepare(archive: Path | None = None, out: Path = DEFAULT_OUT) -> Path:
    """Unpack ``archive`` to ``out`` unless a complete copy is there already.

    Args:
        archive: The ``.tar.gz``; by default :func:`default_archive`.
        out: The folder that will hold ``annotations/`` and ``images/``.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: There is no archive at that place.
        ValueError: The archive is not the BCCD set.
    """
    out = Path(out)
    if is_complete(out):
        return out
    archive = Path(archive) if archive else default_archive()
    if not archive.is_file():
        raise FileNotFoundError(
            f'The BCCD archive {archive} does not exist; name the file with --archive, or its '
            'folder in the variable MMKD_DATA. (The pictures come from '
            'github.com/Shenggan/BCCD_Dataset, in VOC format there.)'
        )
    part = out.with_name(out.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter='data')  # refuses absolute paths and links that lead outside
    inner = part / 'bccd_coco'
    if not is_complete(inner):
        shutil.rmtree(part)
        raise ValueError(
            f'{archive} does not hold the BCCD set: expected the folder bccd_coco with '
            f'annotations/instances_SPLIT.json of {SPLITS} images, and images/.'
        )
    shutil.rmtree(out, ignore_errors=True)
    inner.rename(out)
    shutil.rmtree(part)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--archive', type=Path, help='the archive; default: $MMKD_DATA or ../shared/data'
    )
    parser.add_argument('--out', type=Path, default=DEFAULT_OUT, help='default: data/bccd_coco')
    args = parser.parse_args()
    try:
        print(f'BCCD is ready in {prepare(args.archive, args.out)}')
    except (FileNotFoundError, ValueError) as err:
        raise SystemExit(str(err)) from None


if __name__ == '__main__':
    main()
