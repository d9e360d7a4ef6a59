"""In-memory sets: whole batches, subsets, bad arrays, and what a loader makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from mmkd_plugin.datasets import ArrayDataset, SklearnDigits, balanced_subset, whole_batch

IMAGES = torch.arange(12 * 3 * 2 * 2).reshape(12, 3, 2, 2).to(torch.uint8)
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
NAMES = ['a', 'b', 'c']


def make(**changes) -> ArrayDataset:
    return ArrayDataset(**{**dict(images=IMAGES, labels=LABELS, classes=NAMES), **changes})


def test_a_batch_is_cut_out_at_once():
    batch = make().__getitems__([3, 9, 0])
    assert batch['inputs'].dtype == torch.uint8
    assert torch.equal(batch['inputs'], IMAGES[[3, 9, 0]])
    assert batch['data_samples']['gt_label'].tolist() == [0, 2, 0]
    assert batch['data_samples']['gt_label'].dtype == torch.int64
    assert batch['data_samples']['index'].tolist() == [3, 9, 0]
    item = make()[-1]
    assert torch.equal(item['inputs'], IMAGES[11]) and item['data_samples']['index'] == 11


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_yields_whole_batches(workers):
    loader = DataLoader(make(), 5, collate_fn=whole_batch, num_workers=workers)
    batches = list(loader)
    assert [len(b['inputs']) for b in batches] == [5, 5, 2]
    assert torch.equal(torch.cat([b['inputs'] for b in batches]), IMAGES)
    assert torch.cat([b['data_samples']['index'] for b in batches]).tolist() == list(range(12))


@pytest.mark.parametrize('wrap', [lambda d: Subset(d, range(12)), lambda d: ConcatDataset([d])])
def test_wrapped_sets_give_the_same_batches(wrap):
    plain = next(iter(DataLoader(make(), 5, collate_fn=whole_batch)))
    wrapped = next(iter(DataLoader(wrap(make()), 5, collate_fn=whole_batch)))
    assert torch.equal(plain['inputs'], wrapped['inputs'])
    assert torch.equal(plain['data_samples']['gt_label'], wrapped['data_samples']['gt_label'])


def test_mmengine_builds_the_loader_with_and_without_prefix():
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    for prefix in ('', 'mmkd_plugin.'):
        config = dict(
            dataset=dict(type='mmkd_plugin.SklearnDigits', split='val'),
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_size=16,
            num_workers=0,
            collate_fn=dict(type=prefix + 'whole_batch'),
            worker_init_fn=dict(type=prefix + 'epoch_worker_seed'),
        )
        with DefaultScope.overwrite_default_scope('mmkd_plugin'):
            loader = Runner.build_dataloader(config, seed=0)
        assert next(iter(loader))['inputs'].shape == (16, 3, 8, 8)
        assert loader.dataset.metainfo['classes'] == tuple('0123456789')
        with DefaultScope.overwrite_default_scope('mmkd_plugin'):
            loader = Runner.build_dataloader(dict(config, num_batch_per_epoch=3), seed=0)
        assert [len(b['inputs']) for b in loader] == [16] * 3


def test_balanced_subsets_are_balanced_and_nested():
    small, large = (balanced_subset(LABELS, n) for n in (4, 9))
    assert LABELS[large].bincount().tolist() == [3, 3, 3]
    assert sorted(LABELS[small].bincount().tolist()) == [1, 1, 2]
    assert set(small.tolist()) < set(large.tolist())
    assert balanced_subset(LABELS, 12).tolist() == list(range(12))
    shuffled = LABELS[torch.randperm(12)]
    assert shuffled[balanced_subset(shuffled, 6)].bincount().tolist() == [2, 2, 2]


def test_subsets_count_their_own_images():
    part = make(num_samples=3)
    assert len(part) == 3 and part.labels.tolist() == [0, 1, 2]
    assert part.__getitems__([2])['data_samples']['index'].tolist() == [2]
    assert make(indices=[11, 0]).labels.tolist() == [2, 0]
    assert make(indices=np.array([5])).labels.tolist() == [1]
    assert '3 images 3x2x2, 3 classes' in repr(part)


@pytest.mark.parametrize(
    'changes,message',
    [
        (dict(labels=LABELS + 1), r'Labels must lie in 0\.\.2 \(3 classes\).*from 1 to 3'),
        (dict(labels=LABELS - 1), r'from -1 to 1'),
        (dict(labels=LABELS.float()), 'labels must be whole numbers'),
        (dict(labels=LABELS[:3]), '12 images, but 3 labels'),
        (dict(images=IMAGES.float()), r'images must be uint8 of shape \(N, 3, H, W\)'),
        (dict(images=IMAGES[:, :1]), 'images must be uint8'),
        (dict(images=IMAGES[:0], labels=LABELS[:0]), 'The data set is empty'),
        (dict(indices=[12]), r'indices must lie in 0\.\.11'),
        (dict(indices=[]), 'indices must be a list of image numbers'),
        (dict(indices=[1], num_samples=1), 'not both'),
        (dict(num_samples=13), r'whole number in 1\.\.12'),
        (dict(num_samples=0.5), r'whole number in 1\.\.12'),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_digits_split_is_complete_disjoint_and_stratified():
    from sklearn.datasets import load_digits

    splits = {split: SklearnDigits(split) for split in ('train', 'val', 'test')}
    assert [len(s) for s in splits.values()] == [897, 300, 600]
    together = torch.cat([s.images[:, 0].flatten(1) for s in splits.values()])
    original = torch.from_numpy((load_digits().images * 255 / 16).round()).flatten(1)
    assert torch.equal(together.sum(0), original.sum(0).long())
    for split, share in (('train', 3), ('val', 1), ('test', 2)):
        expected = torch.bincount(torch.from_numpy(load_digits().target)) * share / 6
        assert (splits[split].labels.bincount() - expected).abs().max() < 2


def test_digits_are_grey_rgb_of_the_wanted_size():
    digits = SklearnDigits('val', size=32, num_samples=20)
    assert digits.images.shape == (20, 3, 32, 32) and digits.images.max() > 200
    assert torch.equal(digits.images[:, 0], digits.images[:, 2])
    assert digits.labels.bincount().tolist() == [2] * 10


def test_digits_bad_input():
    with pytest.raises(ValueError, match="split must be one of 'train', 'val', 'test'"):
        SklearnDigits('validation')
    with pytest.raises(ValueError, match='size must be'):
        SklearnDigits(size=0)
