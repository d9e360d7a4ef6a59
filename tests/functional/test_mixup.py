"""Mixup of a batch with itself, rolled by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkd_plugin import functional as F


def test_pinned():
    images = torch.tensor([[1, 0], [0, 2], [4, 4]], dtype=torch.float64)
    mixed = F.mixup(images, max(0.3, 1 - 0.3))
    expected = torch.tensor([[1.9, 1.2], [0.3, 1.4], [2.8, 3.4]], dtype=torch.float64)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize('lam', [0.0, 0.25, 0.9, 1])
def test_equals_numpy_for_numbers_and_tensors(lam):
    images = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    x = images.numpy()
    expected = np.stack([lam * x[n] + (1 - lam) * x[n - 1] for n in range(5)])
    for given in (lam, torch.tensor(lam), torch.tensor(lam, dtype=torch.float64)):
        mixed = F.mixup(images, given)
        np.testing.assert_allclose(mixed.numpy(), expected, atol=1e-7)
        assert mixed.dtype == torch.float64
    assert torch.equal(F.mixup(images, 1), images)
    assert torch.equal(F.mixup(images, 0), images.roll(1, 0))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_float32(dtype):
    images = torch.randn(4, 3, 2, 2).to(dtype)
    mixed = F.mixup(images, 0.3)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, F.mixup(images.double(), 0.3).float())


def test_the_input_stays_and_gets_its_gradient():
    images = torch.randn(3, 2, requires_grad=True)
    before = images.detach().clone()
    (F.mixup(images, 0.3)[0] * 10).sum().backward()
    assert torch.equal(images.detach(), before)
    torch.testing.assert_close(images.grad, torch.tensor([[3.0, 3], [0, 0], [7, 7]]))


@pytest.mark.parametrize(
    ('images', 'lam', 'message'),
    [
        (torch.zeros(1, 3, 4, 4), 0.5, r'at least two images.*\(1, 3, 4, 4\)'),
        (torch.zeros(0, 3, 4, 4), 0.5, 'at least two images'),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 0.5, 'float tensor.*torch.uint8'),
        (torch.tensor(1.0), 0.5, r'float tensor \(N, ...\), got shape \(\)'),
        ([1.0, 2.0], 0.5, 'float tensor.*got a list'),
        (torch.zeros(2, 3), 1.5, 'lam must be a number from 0 to 1, got 1.5'),
        (torch.zeros(2, 3), -0.1, 'lam must be a number .*got -0.1'),
        (torch.zeros(2, 3), float('nan'), 'lam must be a number .*got nan'),
        (torch.zeros(2, 3), '0.5', "lam must be a number .*got '0.5'"),
        (torch.zeros(2, 3), torch.rand(2), r'lam must be one number, got a tensor of shape \(2,\)'),
    ],
)
def test_wrong_input_raises(images, lam, message):
    with pytest.raises(ValueError, match=message):
        F.mixup(images, lam)
