"""TorchvisionDataset: transforms, slices, two views, worker seeds, missing data."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import VisionDataset
from torchvision.transforms.v2 import functional as tvf

from mmkd_plugin.datasets import (
    TeacherStudentViews,
    TorchvisionDataset,
    epoch_worker_seed,
    stack_batch,
)

CROP = dict(type='RandomResizedCrop', size=8, antialias=False)


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """Ten images of each of two classes, in one split."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (folder / 'train' / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / 'train' / name / f'{i}.png')
    return folder


def make(root: Path, split: str = 'train', transforms=(), **kwargs) -> TorchvisionDataset:
    return TorchvisionDataset('ImageFolder', root, split, list(transforms), **kwargs)


def test_items_are_uint8_images(root):
    data = make(root)
    assert len(data) == 20 and data.metainfo['classes'] == ('cat', 'dog')
    item = data[13]
    pixels = np.asarray(Image.open(root / 'train' / 'dog' / '3.png'))
    assert (item['inputs'].permute(1, 2, 0).numpy() == pixels).all()
    assert item['data_samples'] == dict(gt_label=1, index=13)


def test_batches(root):
    data = make(root, transforms=[dict(type='Resize', size=12), dict(type='CenterCrop', size=10)])
    batch = next(iter(DataLoader(data, 6, collate_fn=stack_batch)))
    assert batch['inputs'].shape == (6, 3, 10, 10) and batch['inputs'].dtype == torch.uint8
    assert batch['data_samples']['gt_label'].dtype == torch.int64
    assert batch['data_samples']['index'].tolist() == list(range(6))


def test_grey_images_become_rgb(tmp_path):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    Image.new('L', (5, 5), 40).save(tmp_path / 'train' / 'a' / '0.png')
    assert (make(tmp_path)[0]['inputs'] == 40).all()


def test_grey_images_of_16_bits_are_scaled(tmp_path):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    wide = np.random.default_rng(0).integers(0, 2**16, (5, 5), dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / 'train' / 'a' / '0.png')
    found = make(tmp_path)[0]['inputs'].numpy()
    assert np.abs(found - wide[None] / 257).max() <= 0.5
    Image.fromarray(wide.astype(np.float32)).save(tmp_path / 'train' / 'a' / '1.tiff')
    with pytest.raises(ValueError, match="1.tiff have 32 bits .mode 'F'.*8 or 16 bits"):
        make(tmp_path)[1]


def test_splits_number_their_classes_alike(tmp_path):
    for place in ('train/a', 'train/b', 'train/c', 'val/a', 'val/c'):
        (tmp_path / place).mkdir(parents=True)
        Image.new('L', (5, 5)).save(tmp_path / place / '0.png')
    val = make(tmp_path, 'val')
    assert [item['data_samples']['gt_label'] for item in val] == [0, 2]
    assert val.metainfo['classes'] == ('a', 'b', 'c')
    other = make(tmp_path, 'val', classes=['c', 'b', 'a'])
    assert [item['data_samples']['gt_label'] for item in other] == [0, 2]
    assert other.source.samples[0][0].endswith('c/0.png')
    called = make(
        tmp_path, 'val', classes=['apple', 'bear', 'cat']
    )  # other names, not other folders
    assert [item['data_samples']['gt_label'] for item in called] == [0, 2]


def test_hidden_files_are_no_images(tmp_path):
    (tmp_path / 'train' / 'a' / '.ipynb_checkpoints').mkdir(parents=True)
    for place in ('0.png', '.ipynb_checkpoints/0-checkpoint.png', '._0.png'):
        Image.new('L', (5, 5)).save(tmp_path / 'train' / 'a' / place)
    assert len(make(tmp_path)) == 1


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def offline(self):
        raise URLError('no connection')

    monkeypatch.setattr('torchvision.datasets.Flowers102.download', offline)
    with pytest.raises(FileNotFoundError, match='no connection.*by hand.*point data_root'):
        TorchvisionDataset('Flowers102', tmp_path, download=True)


def test_slices_are_disjoint_complete_and_mix_the_classes(root):
    first, second = make(root, 'train[:70%]'), make(root, 'train[70%:]')
    assert len(first) == 14 and len(second) == 6
    assert sorted([*first.chosen, *second.chosen]) == list(range(20))
    assert 0 < (first.chosen < 10).sum() < 10
    assert (make(root, 'train[:70%]').chosen == first.chosen).all()
    assert first.chosen.tolist() == np.sort(np.random.RandomState(0).permutation(20)[:14]).tolist()
    assert len(make(root, 'train[3:8]')) == 5 and len(make(root, 'train[:]')) == 20
    assert second[0]['data_samples']['index'] == 0


@pytest.mark.parametrize(
    'split,message',
    [
        ('train[90%]', 'split must be a name with or without a slice'),
        ('train[50%:50%]', 'is no part of 20 images'),
        ('train[:21]', 'goes from 0 to 21'),
    ],
)
def test_bad_slices(root, split, message):
    with pytest.raises(ValueError, match=message):
        make(root, split)


@pytest.mark.parametrize('mode', ['same', 'fixed', 'independent'])
def test_two_views(root, mode):
    views = dict(type='TeacherStudentViews', size=8, mode=mode, teacher_size=12)
    data = make(root, transforms=[dict(type='Resize', size=14, antialias=True), views])
    batch = stack_batch([data[i] for i in range(5)])
    assert batch['inputs'].shape == (5, 3, 8, 8)
    assert batch['teacher_inputs'].shape == (5, 3, 12, 12)


def test_the_views_are_what_they_are_called():
    image = torch.randint(0, 256, (3, 16, 20)).to(torch.uint8)
    for mode in ('same', 'fixed', 'independent'):
        torch.manual_seed(0)
        student, teacher = TeacherStudentViews(16, mode, scale=(1, 1), ratio=(1, 1))(image)
        # the only square crop of the whole area is none, so torchvision takes the centre
        assert student.shape == (3, 16, 16)
        if mode == 'same':
            assert teacher is None  # the student's
        elif mode == 'fixed':
            assert torch.equal(teacher, tvf.center_crop(image, [16, 16]))
    torch.manual_seed(1)
    same = TeacherStudentViews((4, 4), 'same', teacher_size=(8, 8), flip=1.0)
    small, large = same(image)
    torch.manual_seed(1)
    other, _ = same(image)
    assert torch.equal(small, other)
    student, teacher = TeacherStudentViews(8, 'independent')(image)
    assert student.shape == teacher.shape and not torch.equal(student, teacher)


def test_views_must_come_last(root):
    with pytest.raises(ValueError, match=r'transforms\[0\]: TeacherStudentViews must come last'):
        make(root, transforms=[dict(type='TeacherStudentViews', size=8), CROP])
    with pytest.raises(ValueError, match="did you mean 'same'"):
        make(root, transforms=[dict(type='TeacherStudentViews', size=8, mode='sane')])


def crops(root: Path, epochs: int = 2, **kwargs) -> list[torch.Tensor]:
    loader = DataLoader(
        make(root, transforms=[CROP]), 10, collate_fn=stack_batch, num_workers=2, **kwargs
    )
    return [torch.cat([b['inputs'] for b in loader]) for _ in range(epochs)]


def test_workers_draw_anew_in_every_epoch(root):
    torch.manual_seed(0)
    one = crops(root, worker_init_fn=epoch_worker_seed)
    torch.manual_seed(0)
    two = crops(root, worker_init_fn=epoch_worker_seed)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_mmengines_own_seeding_repeats_the_first_epoch(root):
    """Shows what epoch_worker_seed is for."""
    from functools import partial

    from mmengine.dataset import worker_init_fn

    init = partial(worker_init_fn, num_workers=2, rank=0, seed=0)
    one = crops(root, worker_init_fn=init)
    assert torch.equal(one[0], one[1])


def test_worker_seeds_differ_between_ranks(monkeypatch):
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr('mmkd_plugin.datasets.loading.get_rank', lambda rank=rank: rank)
        torch.manual_seed(5)
        epoch_worker_seed(0)
        drawn.append((torch.rand(()).item(), np.random.rand()))
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize(
    'transform,message',
    [
        (dict(type='RandomResizdCrop'), "nearest: 'RandomResizedCrop'"),
        (dict(type='Resize', sise=3), r"transforms\[0\] \(Resize\) has an unknown key 'sise'"),
        (dict(size=3), "must be a dict with a 'type'"),
        (dict(type='RandomResizedCrop', size=8, scale=1), r'transforms\[0\] \(RandomResizedCrop\)'),
    ],
)
def test_bad_transforms(root, transform, message):
    with pytest.raises(ValueError, match=message):
        make(root, transforms=[transform])


def test_batches_that_cannot_be_stacked(root):
    items = [make(root)[0], make(root, transforms=[dict(type='Resize', size=8)])[1]]
    with pytest.raises(ValueError, match='different shapes.*CenterCrop'):
        stack_batch(items)
    item = make(root)[0]
    item['inputs'] = item['inputs'].float()
    with pytest.raises(ValueError, match='must be uint8 tensors.*float32'):
        stack_batch([item])


@pytest.mark.parametrize(
    'name,split', [('Flowers102', 'train'), ('OxfordIIITPet', 'trainval'), ('Food101', 'train'),
                   ('SUN397', ''), ('ImageNet', 'val'), ('ImageFolder', 'train')]
)  # fmt: skip
def test_missing_data_says_how_to_get_it(tmp_path, name, split):
    way = dict(ImageNet='officials?', ImageFolder='<class>/<image>').get(name, 'download=True')
    with pytest.raises(FileNotFoundError, match=f'{name} could not be read.*{way}'):
        TorchvisionDataset(name, tmp_path / 'nowhere', split)


def test_bad_names(root):
    with pytest.raises(ValueError, match="nearest: 'Flowers102'"):
        TorchvisionDataset('Flower102', root)
    with pytest.raises(ValueError, match="SUN397 has no split 'train'"):
        TorchvisionDataset('SUN397', root)
    with pytest.raises(ValueError, match='trainval'):
        TorchvisionDataset('OxfordIIITPet', root)
    with pytest.raises(ValueError, match="unknown key 'loadr'"):
        make(root, loadr=None)
    with pytest.raises(ValueError, match=r"dog is a class that is not in classes=\['cat'\]"):
        make(root, classes=['cat'])
    with pytest.raises(ValueError, match=r'Labels must lie in 0\.\.0'):
        make(root, classes=['tomcat'])


def test_sets_without_class_names(monkeypatch):
    class Bare(VisionDataset):
        def __init__(self, root):
            self.labels = None

        def __len__(self):
            return 3

    monkeypatch.setattr('torchvision.datasets.Bare', Bare, raising=False)
    with pytest.raises(ValueError, match='give classes'):
        TorchvisionDataset('Bare', 'x', '')
    assert TorchvisionDataset('Bare', 'x', '', classes=['a']).metainfo['classes'] == ('a',)
    Bare.labels = property(lambda self: [0, 2, 1], lambda self, value: None)
    assert TorchvisionDataset('Bare', 'x', '').metainfo['classes'] == ('0', '1', '2')


def test_an_undecodable_image_is_named(root, tmp_path):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'train' / 'a' / '0.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'Image 0 of ImageFolder \(train\) cannot be decoded'):
        make(tmp_path)[0]
