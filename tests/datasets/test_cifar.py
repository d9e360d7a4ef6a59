"""CIFAR100 on small files of the same format."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from mmkd_plugin.datasets import CIFAR100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / 'cifar-100-python'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (('train', 200), ('test', 100)):
        content = dict(
            data=rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            fine_labels=(np.arange(count) % 100).tolist(),
        )
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f'class {i}' for i in range(100)]
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=names)))
    return tmp_path


def test_images_and_labels_are_those_of_the_file(root):
    content = pickle.loads((root / 'cifar-100-python' / 'train').read_bytes())
    data = CIFAR100(root, check_md5=False)
    assert data.images.shape == (200, 3, 32, 32)
    assert (data.images.reshape(200, -1).numpy() == content['data']).all()
    assert data.labels.tolist() == content['fine_labels']
    assert data.metainfo['classes'][3] == 'class 3'
    assert len(CIFAR100(root / 'cifar-100-python', 'test', check_md5=False)) == 100
    assert CIFAR100(root, check_md5=False, num_samples=100).labels.bincount().max() == 1


def test_other_files_fail_the_checksum(root):
    with pytest.raises(ValueError, match='not the official ones.*check_md5=False'):
        CIFAR100(root)


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match='(?s)train, test, meta.*download=True.*Sklearn'):
        CIFAR100(tmp_path / 'nowhere')


@pytest.mark.parametrize('name', ['train', 'meta'])
@pytest.mark.parametrize('damage', ['empty', 'truncated', 'other', 'text'])
def test_a_damaged_file_is_named(root, name, damage):
    path = root / 'cifar-100-python' / name
    content = path.read_bytes()
    other = pickle.dumps(dict(something=1))
    path.write_bytes(
        dict(empty=b'', truncated=content[: len(content) // 2], other=other, text=b'<html>')[damage]
    )
    with pytest.raises(ValueError, match=f'cifar-100-python/{name} is damaged'):
        CIFAR100(root, check_md5=False)


def test_labels_out_of_range(root):
    path = root / 'cifar-100-python' / 'train'
    content = pickle.loads(path.read_bytes())
    content['fine_labels'][0] = 100
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r'Labels must lie in 0\.\.99'):
        CIFAR100(root, check_md5=False)


def test_code_in_a_file_is_not_run(root, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran',)

    (root / 'cifar-100-python' / 'train').write_bytes(pickle.dumps(dict(data=Code())))
    with pytest.raises(ValueError, match='cifar-100-python/train is damaged .*which is no data'):
        CIFAR100(root, check_md5=False)
    assert not (tmp_path / 'ran').exists()


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def offline(self):
        raise URLError('no connection')

    monkeypatch.setattr('torchvision.datasets.CIFAR100.download', offline)
    with pytest.raises(FileNotFoundError, match='not be downloaded.*no connection.*by hand'):
        CIFAR100(tmp_path, download=True)


def test_bad_split(root):
    with pytest.raises(ValueError, match="split must be one of 'train', 'test'"):
        CIFAR100(root, 'val')


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_all_that_pickles_arrays_is_read(root: Path, protocol: int):
    path = root / 'cifar-100-python' / 'train'
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = CIFAR100(root, check_md5=False)
    assert np.array_equal(read.images.reshape(len(read), -1), content['data'])


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 did, whose ``str`` they are."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + len(data).to_bytes(4, 'little') + data)
        self.memoize(data)

    dispatch[bytes] = save_bytes


def test_a_file_of_python_2_is_read(root: Path):
    path = root / 'cifar-100-python' / 'train'
    content = pickle.loads(path.read_bytes())
    with open(path, 'wb') as file:
        Python2(file, protocol=2).dump(content)
    read = CIFAR100(root, check_md5=False)
    assert np.array_equal(read.images.reshape(len(read), -1), content['data'])
