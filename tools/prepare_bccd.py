#!/usr/bin/env python
"""Bring the BCCD blood cells (MIT licence) to the COCO form that ``configs/detection/bccd`` reads.

    git clone https://github.com/Shenggan/BCCD_Dataset
    python tools/prepare_bccd.py --voc BCCD_Dataset              # writes data/bccd_coco

The source is in VOC form: ``Annotations/*.xml``, ``JPEGImages/*.jpg`` and the lists of the splits,
``ImageSets/Main/{train,val,test}.txt``. The rows of docs/results.md were measured with commit
d272fb1 of it; the command says where another version differs. ``--archive FILE`` unpacks a set that
is converted already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SOURCE = 'https://github.com/Shenggan/BCCD_Dataset'
ARCHIVE = 'bccd_coco.tar.gz'
DEFAULT_OUT = ROOT / 'data' / 'bccd_coco'
CLASSES = ('RBC', 'WBC', 'Platelets')
# Images and boxes of each split in commit d272fb1.
MEASURED = {'train': (205, 2804), 'val': (87, 1137), 'test': (72, 945)}


def read_split(out: Path, split: str) -> dict[str, Any]:
    """The COCO annotations of a converted split."""
    return json.loads((out / 'annotations' / f'instances_{split}.json').read_text())


def is_complete(out: Path) -> bool:
    """Whether every split's annotation file and every image it names are there."""
    try:
        names = [image['file_name'] for s in MEASURED for image in read_split(out, s)['images']]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(names) and all((out / 'images' / name).is_file() for name in names)


def differences(out: Path) -> list[str]:
    """How a converted set differs from the one that was measured, in words."""
    found = []
    for split, (images, boxes) in MEASURED.items():
        data = read_split(out, split)
        counts = len(data['images']), len(data['annotations'])
        if counts != (images, boxes):
            found.append(
                f'{split} has {counts[0]} images and {counts[1]} boxes, measured were {images} '
                f'and {boxes}'
            )
    return found


def find_voc(folder: Path) -> Path:
    """The folder with ``Annotations``: this one, or ``BCCD`` in it, as in a clone of the source.

    Raises:
        FileNotFoundError: neither has all three parts of a VOC set.
    """
    parts = ('Annotations', 'JPEGImages', 'ImageSets/Main')
    for place in (folder, folder / 'BCCD'):
        if all((place / part).is_dir() for part in parts):
            return place
    raise FileNotFoundError(
        f'{folder} is no VOC set: expected are the folders {", ".join(parts)}, there or in its '
        f'sub-folder BCCD. Get it with: git clone {SOURCE}'
    )


def convert(voc: Path, out: Path) -> Path:
    """Converts a VOC set of blood cells to COCO form.

    Images are numbered through the splits train, val, test, by name within each. Boxes keep their
    corners as they are; those without an area are left out.

    Args:
        voc: the set, see :func:`find_voc`.
        out: the folder that will hold ``annotations/`` and ``images/``; replaced if it is there.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: a part of the set is missing, by name.
        ValueError: a file that is no VOC annotation, an unknown class, or an image in two splits.
    """
    voc = find_voc(Path(voc))
    splits = {split: _read_names(voc, split) for split in MEASURED}
    listed = [name for names in splits.values() for name in names]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise ValueError(f'{", ".join(twice[:5])}: listed twice in {voc / "ImageSets/Main"}.')
    part = _empty(out)
    (part / 'annotations').mkdir()
    (part / 'images').mkdir()
    first_image, first_box = 1, 1
    for split, names in splits.items():
        data = _convert_split(voc, names, first_image, first_box)
        first_image += len(data['images'])
        first_box += len(data['annotations'])
        for image in data['images']:
            name = image['file_name']
            shutil.copyfile(voc / 'JPEGImages' / name, part / 'images' / name)
        (part / 'annotations' / f'instances_{split}.json').write_text(json.dumps(data))
    return _move(part, part, out)


def _read_names(voc: Path, split: str) -> list[str]:
    file = voc / 'ImageSets' / 'Main' / f'{split}.txt'
    if not file.is_file():
        raise FileNotFoundError(
            f'{file} is missing, the list of the images in {split}. A clone of {SOURCE} has it.'
        )
    return sorted(line.split()[0] for line in file.read_text().splitlines() if line.strip())


def _convert_split(voc: Path, names: list[str], image_id: int, box_id: int) -> dict[str, Any]:
    """COCO annotations of the images, numbered from the two ids on."""
    images, boxes = [], []
    for name in names:
        file = voc / 'JPEGImages' / f'{name}.jpg'
        if not file.is_file():
            raise FileNotFoundError(f'{file} is missing, but listed in a split.')
        with Image.open(file) as image:
            width, height = image.size
        images.append(dict(id=image_id, file_name=file.name, width=width, height=height))
        for category, corners in _read_boxes(voc / 'Annotations' / f'{name}.xml'):
            left, top, right, bottom = corners
            if right <= left or bottom <= top:
                print(f'{name}: a box without an area is left out: {corners}')
                continue
            size = right - left, bottom - top
            boxes.append(
                dict(
                    id=box_id,
                    image_id=image_id,
                    category_id=category,
                    bbox=[left, top, *size],
                    area=size[0] * size[1],
                    iscrowd=0,
                )
            )
            box_id += 1
        image_id += 1
    return dict(
        info=dict(description=f'BCCD blood cells, {SOURCE}, converted from VOC'),
        licenses=[dict(id=1, name='MIT', url=f'{SOURCE}/blob/master/LICENSE')],
        images=images,
        annotations=boxes,
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
    )


def _read_boxes(file: Path) -> list[tuple[int, tuple[float, ...]]]:
    """Category and corners (left, top, right, bottom) of each object."""
    try:
        objects = ElementTree.parse(file).getroot().findall('object')
        found = [
            (
                item.findtext('name', '').strip(),
                tuple(
                    float(item.findtext(f'bndbox/{k}')) for k in ('xmin', 'ymin', 'xmax', 'ymax')
                ),
            )
            for item in objects
        ]
    except FileNotFoundError:
        raise FileNotFoundError(f'{file} is missing, but its image is listed in a split.') from None
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f'{file} is no VOC annotation ({error}).') from error
    unknown = sorted({name for name, _ in found if name not in CLASSES})
    if unknown:
        raise ValueError(f'{file} has the class {unknown[0]!r}; known are {", ".join(CLASSES)}.')
    return [(CLASSES.index(name) + 1, corners) for name, corners in found]


def unpack(archive: Path, out: Path) -> Path:
    """Unpacks a converted set.

    Args:
        archive: a ``.tar.gz`` with the folder ``bccd_coco``.
        out: the folder that will hold ``annotations/`` and ``images/``; replaced if it is there.

    Raises:
        FileNotFoundError: there is no archive at that place.
        ValueError: it is not the BCCD set.
    """
    if not archive.is_file():
        raise FileNotFoundError(f'The archive {archive} does not exist.')
    part = _empty(out)
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter='data')  # refuses absolute paths and links that lead outside
    inner = part / 'bccd_coco'
    if not is_complete(inner):
        shutil.rmtree(part)
        raise ValueError(
            f'{archive} does not hold the BCCD set: expected is the folder bccd_coco with '
            f'annotations/instances_SPLIT.json for {", ".join(MEASURED)}, and images/.'
        )
    return _move(inner, part, out)


def _empty(out: Path) -> Path:
    """A new folder beside ``out``, so that ``out`` is whole or not there."""
    part = out.with_name(out.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def _move(made: Path, part: Path, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    made.rename(out)
    shutil.rmtree(part, ignore_errors=True)
    return out


def prepare(archive: Path | None = None, out: Path = DEFAULT_OUT, voc: Path | None = None) -> Path:
    """Makes the set ready unless a complete copy is there already.

    Args:
        archive: A converted set; by default ``bccd_coco.tar.gz`` in the folder ``$MMKD_DATA``,
            where that is set.
        out: The folder that will hold ``annotations/`` and ``images/``.
        voc: The public set in VOC form; where it is given, it is converted.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: There is neither a copy nor anything to make it from.
        ValueError: What was given is not the BCCD set.
    """
    out = Path(out)
    if voc is not None:
        return convert(Path(voc), out)
    if archive is None and is_complete(out):
        return out
    if archive is None and os.environ.get('MMKD_DATA'):
        archive = Path(os.environ['MMKD_DATA']) / ARCHIVE
    if archive is None:
        raise FileNotFoundError(
            f'BCCD is not there yet. Get it with: git clone {SOURCE} && '
            'python tools/prepare_bccd.py --voc BCCD_Dataset'
        )
    return unpack(Path(archive), out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--voc', type=Path, help='a clone of the public set, to be converted')
    source.add_argument(
        '--archive', type=Path, help=f'a converted set; default: {ARCHIVE} in $MMKD_DATA'
    )
    parser.add_argument('--out', type=Path, default=DEFAULT_OUT, help='default: data/bccd_coco')
    args = parser.parse_args()
    try:
        out = prepare(args.archive, args.out, args.voc)
    except (FileNotFoundError, ValueError) as err:
        raise SystemExit(str(err)) from None
    for line in differences(out):
        print(f'Not the set of docs/results.md: {line}.')
    print(f'BCCD is ready in {out}')


if __name__ == '__main__':
    main()
