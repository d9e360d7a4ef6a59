"""CachedImageFolder: decoding, the cache and its damage, missing folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as tvf

from mmkd_plugin.datasets import CachedImageFolder, image_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for i, (height, width) in enumerate([(20, 40), (60, 20), (18, 18)]):
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    return tmp_path / 'data'


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The files that were decoded."""
    calls, original = [], image_folder.decode
    monkeypatch.setattr(image_folder, 'decode', lambda f, s: calls.append(f) or original(f, s))
    return calls


def test_images_are_resized_and_cut(root):
    data = CachedImageFolder(root, 'train', size=10)
    assert data.images.shape == (6, 3, 10, 10)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.metainfo['classes'] == ('cat', 'dog')
    for i, name in enumerate(['0', '1', '2']):
        image = Image.open(root / 'train' / 'cat' / f'{name}.png')
        expected = tvf.center_crop(tvf.resize(image, 10, antialias=True), [10, 10])
        expected = np.asarray(expected, dtype=int).transpose(2, 0, 1)
        assert np.abs(data.images[i].numpy() - expected).max() <= 1


def test_grey_and_palette_images_become_rgb(root):
    Image.new('L', (20, 20), 77).save(root / 'train' / 'cat' / '3.png')
    Image.new('RGBA', (20, 20), (1, 2, 3, 0)).save(root / 'train' / 'cat' / '4.png')
    data = CachedImageFolder(root, 'train', size=8)
    assert (data.images[3] == 77).all() and data.images[4, :, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize('name', ['0.png', '0.pgm', '0.tiff'])
def test_grey_images_of_16_bits_are_scaled(tmp_path, name):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    wide = np.random.default_rng(0).integers(0, 2**16, (8, 8), dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / 'train' / 'a' / name)
    data = CachedImageFolder(tmp_path, size=8)
    assert np.abs(data.images[0].numpy() - wide[None] / 257).max() <= 0.5


def test_grey_images_of_an_unknown_range_are_refused(tmp_path):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / 'train' / 'a' / '0.tiff')
    with pytest.raises(ValueError, match="a/0.tiff.*32 bits .mode 'F'.*8 or 16 bits"):
        CachedImageFolder(tmp_path, size=8)


def test_hidden_files_and_folders_are_not_counted(root):
    hidden = root / 'train' / 'cat' / '.ipynb_checkpoints'
    hidden.mkdir()
    for copy in (hidden / '0-checkpoint.png', root / 'train' / 'cat' / '._0.png'):
        copy.write_bytes((root / 'train' / 'cat' / '0.png').read_bytes())
    assert len(CachedImageFolder(root, 'train', size=8)) == 6


def drawn(root, *places):
    for place in places:
        (root / place).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(root / place / '0.png')


def test_a_split_that_lacks_a_class_keeps_the_numbers_of_training(tmp_path):
    drawn(tmp_path, 'train/a', 'train/b', 'train/c', 'val/a', 'val/c')
    val = CachedImageFolder(tmp_path, 'val', size=8)
    assert val.labels.tolist() == [0, 2] and val.classes == ('a', 'b', 'c')
    inside = CachedImageFolder(tmp_path / 'val', split='', size=8)
    assert inside.labels.tolist() == [0, 2]


def test_splits_that_would_be_numbered_differently_are_refused(tmp_path):
    drawn(tmp_path, 'train/a', 'train/c', 'val/a', 'val/b', 'val/c')
    with pytest.raises(
        ValueError, match=r"val cannot be numbered.*: train lacks \['b'\].*classes="
    ):
        CachedImageFolder(tmp_path, 'val', size=8)
    names = ['a', 'b', 'c']
    assert CachedImageFolder(tmp_path, 'train', 8, classes=names).labels.tolist() == [0, 2]
    drawn(tmp_path / 'other', 'training/a', 'training/b', 'training2/a', 'check/a', 'raw/x')
    with pytest.raises(ValueError, match='the classes of training, training2 differ. Give'):
        CachedImageFolder(tmp_path / 'other', 'check', size=8)
    assert len(CachedImageFolder(tmp_path / 'other', 'raw', size=8)) == 1, 'shares no class'


def test_the_cache_is_used_and_renewed(root, decoded):
    first = CachedImageFolder(root, 'train', size=8)
    assert len(decoded) == 6 and (root / '.cache' / 'train-8.npz').is_file()
    again = CachedImageFolder(root, 'train', size=8)
    assert len(decoded) == 6 and (first.images == again.images).all()
    CachedImageFolder(root, 'train', size=9)
    assert len(decoded) == 12  # another size
    Image.new('RGB', (20, 20), (9, 9, 9)).save(root / 'train' / 'dog' / '0.png')
    changed = CachedImageFolder(root, 'train', size=8)
    assert len(decoded) == 18 and (changed.images[3] == 9).all()  # a changed file
    (root / 'train' / 'dog' / '0.png').unlink()
    assert len(CachedImageFolder(root, 'train', size=8)) == 5  # a missing file
    assert not list((root / '.cache').glob('*.part'))


@pytest.mark.parametrize('damage', ['empty', 'truncated', 'text', 'other'])
def test_a_damaged_cache_is_made_again(root, decoded, damage):
    first = CachedImageFolder(root, 'train', size=8)
    path = root / '.cache' / 'train-8.npz'
    content = path.read_bytes()
    if damage == 'other':
        np.savez(path, something=np.zeros(3))
    else:
        path.write_bytes(dict(empty=b'', truncated=content[: len(content) // 2], text=b'x')[damage])
    assert (CachedImageFolder(root, 'train', size=8).images == first.images).all()
    assert len(decoded) == 12
    CachedImageFolder(root, 'train', size=8)
    assert len(decoded) == 12


def test_cache_elsewhere_or_nowhere(root, tmp_path, decoded):
    CachedImageFolder(root, 'train', size=8, cache=tmp_path / 'c')
    assert (tmp_path / 'c' / 'train-8.npz').is_file()
    CachedImageFolder(root, 'train', size=8, cache=False)
    assert not (root / '.cache').exists() and len(decoded) == 12


def test_a_cache_that_cannot_be_written_is_no_failure(root, tmp_path):
    (tmp_path / 'file').write_text('')
    assert len(CachedImageFolder(root, 'train', size=8, cache=tmp_path / 'file')) == 6


def test_missing_folders(root, tmp_path):
    with pytest.raises(FileNotFoundError, match='data_root .* does not exist.*ImageFolder'):
        CachedImageFolder(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match="no folder 'tain'.*'train'"):
        CachedImageFolder(root, 'tain')
    (root / 'empty').mkdir()
    (tmp_path / 'bare').mkdir()
    with pytest.raises(
        FileNotFoundError, match="no folder 'train' .split.; it has no folder at all"
    ):
        CachedImageFolder(tmp_path / 'bare', size=4)
    with pytest.raises(FileNotFoundError, match='holds no image'):
        CachedImageFolder(root, 'empty')


def test_classes_may_be_given(root):
    names = ['dog', 'bird', 'cat']
    assert CachedImageFolder(root, classes=names, size=8).labels.tolist() == [0, 0, 0, 2, 2, 2]
    with pytest.raises(ValueError, match='a class that is not in classes'):
        CachedImageFolder(root, classes=['cat'], size=8)
    with pytest.raises(ValueError, match=r"must name each class once; twice: \['cat'\]"):
        CachedImageFolder(root, classes=['cat', 'dog', 'cat'], size=8)
    assert len(CachedImageFolder(root, classes=np.array(['cat', 'dog']), size=8)) == 6


def test_an_undecodable_image_is_named(root):
    (root / 'train' / 'cat' / '1.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='cat/1.png cannot be decoded'):
        CachedImageFolder(root, size=8)


def test_bad_size(root):
    with pytest.raises(ValueError, match='size must be'):
        CachedImageFolder(root, size='8')
