"""Batch transforms against references image by image, their statistics, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as nnf
from torchvision import transforms as tv
from torchvision.transforms.v2 import functional as tvf

from mmkd_plugin.datasets import (
    BatchCenterCrop,
    BatchRandomCrop,
    BatchRandomFlip,
    BatchRandomResizedCrop,
    BatchResize,
    build_batch_transforms,
)


def images(count: int = 6, height: int = 20, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def smooth(count: int = 6, height: int = 20, width: int = 24) -> torch.Tensor:
    """Images whose interpolation is not a matter of the last bit of a coordinate."""
    return nnf.interpolate(images(count, 5, 6).float(), (height, width), mode='bicubic').clamp(
        0, 255
    )


ALL = [
    BatchRandomFlip(),
    BatchRandomCrop(16, padding=3),
    BatchRandomResizedCrop(16),
    BatchResize(16),
    BatchCenterCrop(16),
]


@pytest.mark.parametrize('transform', ALL, ids=lambda t: type(t).__name__)
def test_same_seed_same_result_and_input_untouched(transform):
    x = images()
    kept = x.clone()
    torch.manual_seed(5)
    one = transform(x)
    torch.manual_seed(5)
    assert torch.equal(one, transform(x))
    assert torch.equal(x, kept)
    assert one.dtype in (torch.uint8, torch.float32) and one.shape[:2] == (6, 3)
    if transform.draw(x) is not None:
        torch.manual_seed(6)
        assert not torch.equal(one, transform(x))


def test_flip():
    x = images(400)
    flip = BatchRandomFlip(0.3)
    torch.manual_seed(0)
    mask = flip.draw(x)
    assert 80 < int(mask.sum()) < 160
    out = flip.apply(x, mask)
    assert torch.equal(out[mask], x[mask].flip(-1)) and torch.equal(out[~mask], x[~mask])
    assert torch.equal(BatchRandomFlip(0)(x), x) and torch.equal(BatchRandomFlip(1)(x), x.flip(-1))


@pytest.mark.parametrize('size,padding', [(20, 4), ((12, 24), 0), (16, 1)])
def test_random_crop_is_that_of_each_image(size, padding):
    x = images(50)
    crop = BatchRandomCrop(size, padding)
    top, left = crop.draw(x)
    out = crop.apply(x, (top, left))
    h, w = crop.size
    for i, image in enumerate(x):
        padded = nnf.pad(image, (padding,) * 4)
        assert torch.equal(out[i], padded[:, top[i] : top[i] + h, left[i] : left[i] + w])
    assert out.dtype == torch.uint8


def test_random_crop_positions_are_uniform():
    x = torch.zeros(9000, 3, 8, 8, dtype=torch.uint8)
    torch.manual_seed(0)
    for drawn in BatchRandomCrop(8, padding=4).draw(x):
        counts = drawn.bincount(minlength=9)
        assert len(counts) == 9 and (counts - 1000).abs().max() < 150  # 5 sigma


def test_random_crop_pads_with_black():
    crop = BatchRandomCrop(4, padding=4)
    zero = torch.zeros(2, dtype=torch.int64)
    assert (crop.apply(images(2), (zero, zero)) == 0).all()


def test_random_resized_crop_is_that_of_each_image():
    x = smooth(40)
    torch.manual_seed(0)
    crop = BatchRandomResizedCrop((11, 17))
    boxes = crop.draw(x)
    out = crop.apply(x, boxes)
    for i, (top, left, h, w) in enumerate(boxes.int().tolist()):
        expected = tvf.resized_crop(x[i], top, left, h, w, [11, 17], antialias=False)
        assert torch.allclose(out[i], expected, atol=0.02)  # of 255


def test_random_resized_crop_of_uint8_differs_by_rounding_only():
    x = images(20)
    crop = BatchRandomResizedCrop(16)
    boxes = crop.draw(x)
    out = crop.apply(x, boxes)
    for i, (top, left, h, w) in enumerate(boxes.int().tolist()):
        expected = tvf.resized_crop(x[i], top, left, h, w, [16, 16], antialias=False)
        assert (out[i] - expected.float()).abs().max() <= 1.05


def test_random_resized_crop_of_everything_is_the_identity():
    x = images(4, 20, 20)
    crop = BatchRandomResizedCrop(20, scale=(1, 1), ratio=(1, 1))
    assert crop.draw(x).tolist() == [[0, 0, 20, 20]] * 4
    assert torch.allclose(crop(x), x.float(), atol=2e-3)


def test_random_resized_crop_draws_as_torchvision_does():
    height, width, count = 20, 24, 4000
    scale, ratio = (0.05, 1.0), (3 / 4, 4 / 3)
    torch.manual_seed(0)
    x = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    ours = BatchRandomResizedCrop(8, scale, ratio).draw(x)
    theirs = torch.tensor(
        [tv.RandomResizedCrop.get_params(x[0], scale, ratio) for _ in range(count)]
    ).float()
    assert (ours == ours.round()).all() and (ours >= 0).all()
    assert ((ours[:, 0] + ours[:, 2]) <= height).all()
    assert ((ours[:, 1] + ours[:, 3]) <= width).all()
    for column in range(4):
        # two-sample Kolmogorov-Smirnov, 0.1 % level
        values = torch.arange(25.0)
        a, b = ((t[:, column, None] <= values).float().mean(0) for t in (ours, theirs))
        assert (a - b).abs().max() < 1.95 * math.sqrt(2 / count)


@pytest.mark.parametrize('height,width', [(10, 40), (40, 10), (16, 16)])
def test_random_resized_crop_falls_back_to_the_centre(height, width):
    x = torch.zeros(3, 3, height, width, dtype=torch.uint8)
    crop = BatchRandomResizedCrop(8, scale=(5.0, 6.0))  # no attempt can succeed
    expected = tv.RandomResizedCrop.get_params(x[0], [5.0, 6.0], [3 / 4, 4 / 3])
    assert crop.draw(x).tolist() == [list(map(float, expected))] * 3


def test_all_crops_reach_the_borders():
    x = torch.zeros(5000, 3, 12, 12, dtype=torch.uint8)
    torch.manual_seed(0)
    top, left, h, w = BatchRandomResizedCrop(8, (0.2, 0.6)).draw(x).unbind(1)
    for start, length in ((top, h), (left, w)):
        assert start.min() == 0 and (start + length).max() == 12


def test_resize_and_centre_crop_are_torchvisions():
    x = images(3, 30, 41)
    resized = BatchResize(20)(x)
    expected = tvf.resize(x.float(), [20], antialias=True)
    assert resized.shape == expected.shape and torch.allclose(resized, expected, atol=1e-3)
    assert BatchResize((7, 9))(x).shape == (3, 3, 7, 9)
    for size in (15, (15, 20), (30, 41)):
        assert torch.equal(BatchCenterCrop(size)(x), tvf.center_crop(x, size))


@pytest.mark.parametrize(
    'transform', [t for t in ALL if t.sets_size], ids=lambda t: type(t).__name__
)
def test_the_same_draw_at_another_size(transform):
    x = smooth()
    params = transform.draw(x)
    small, large = transform.apply(x, params), transform.apply(x, params, 33)
    assert large.shape[2:] == (33, 33)
    back = nnf.interpolate(large, small.shape[2:], mode='bilinear', antialias=True)
    assert (back - small)[..., 2:-2, 2:-2].abs().mean() < 6  # the same part of the image


@pytest.mark.parametrize(
    'call,message',
    [
        (lambda: BatchRandomFlip(1.5), 'prob must be'),
        (lambda: BatchRandomCrop('32'), 'size must be a number of pixels'),
        (lambda: BatchRandomCrop(32, -1), 'padding must be'),
        (lambda: BatchRandomCrop(32, 2)(images()), r'cannot cut \(32, 32\).*padding=2'),
        (lambda: BatchCenterCrop(32)(images()), 'BatchCenterCrop cannot cut.*BatchResize'),
        (lambda: BatchRandomResizedCrop(0), 'size must be'),
        (lambda: BatchRandomResizedCrop(8, scale=(0, 1)), 'scale must be'),
        (lambda: BatchRandomResizedCrop(8, ratio=(2, 1)), 'ratio must be'),
        (lambda: BatchResize((1, 2, 3)), 'size must be'),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    'config,message',
    [
        ([dict(type='BatchRandmFlip')], r"batch_augments\[0\].*nearest: 'BatchRandomFlip'"),
        ([dict(type='BatchRandomFlip', probability=1)], "unknown key 'probability'.*'prob'"),
        ([dict(prob=1)], "must be a dict with a 'type'"),
        ([dict(type='BatchRandomCrop')], r'\[0\] \(BatchRandomCrop\)'),
        (dict(type='BatchRandomFlip'), 'must be a list of dicts'),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        build_batch_transforms(config, 'batch_augments')


def test_configs_build():
    built = build_batch_transforms(
        [dict(type='mmkd_plugin.BatchRandomCrop', size=[8, 8]), BatchRandomFlip()], 'x'
    )
    assert built[0].size == (8, 8) and isinstance(built[1], BatchRandomFlip)
    assert build_batch_transforms(None, 'x') == []
