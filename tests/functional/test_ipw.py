"""Inverse propensity weights against pinned numbers, a numpy reference and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmkd_plugin import functional as F

KD = torch.tensor([[4, 1, 0, -1], [1, 2, 0.5, 0.5], [0, 0.5, 1, 2.5]], dtype=torch.float64)
CLS = torch.tensor([[2, 1, 0, -1], [3, 0, -1, -2], [0, 1, 3, 1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2])
RATIOS = ('kd_over_cls', 'cls_over_kd')
each_ratio = pytest.mark.parametrize('ratio', RATIOS)


def batch(n: int = 30, classes: int = 6, dtype=torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    kd, cls = (2 * torch.randn(n, classes, generator=g, dtype=torch.float64) for _ in 'kc')
    return kd.to(dtype), cls.to(dtype), torch.randint(classes, (n,), generator=g)


def numpy_weights(kd, cls, labels, ratio, standardize):
    def misfit(z, y):
        if standardize:
            z = (z - z.mean()) / z.std()
        return np.log(np.exp(z).sum()) - z[y]

    pairs = [(misfit(a, y), misfit(b, y)) for a, b, y in zip(kd, cls, labels, strict=True)]
    return np.array([1 + (a / b if ratio == 'kd_over_cls' else b / a) for a, b in pairs])


@pytest.mark.parametrize(
    ('ratio', 'standardize', 'normalize', 'expected'),
    [
        ('kd_over_cls', False, 'none', [1.16395754, 23.10832546, 7.70924610]),
        ('cls_over_kd', False, 'none', [7.09913990, 1.04523183, 1.14904804]),
        ('kd_over_cls', True, 'none', [1.65942936, 6.93479874, 6.95866450]),
        ('kd_over_cls', True, 'batch_mean', [0.32008760, 1.33765446, 1.34225793]),
        ('cls_over_kd', True, 'none', [2.51646265, 1.16849771, 1.16782284]),
        ('cls_over_kd', True, 'batch_mean', [1.55568210, 0.72236755, 0.72195035]),
    ],
)
def test_pinned(ratio, standardize, normalize, expected):
    weights = F.ipw_weights(KD, CLS, LABELS, ratio, standardize, normalize)
    assert weights.tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ('kd', 'cls', 'forward', 'backward'), [(0.5, 0.25, 3.0, 1.5), (0.2, 0.8, 1.25, 5.0)]
)
def test_pinned_scalars(kd, cls, forward, backward):
    def logits(misfit: float) -> torch.Tensor:  # two classes with this cross-entropy for the first
        p = math.exp(-misfit)
        return torch.tensor([[p, 1 - p]], dtype=torch.float64).log()

    for ratio, expected in zip(RATIOS, (forward, backward), strict=True):
        weight = F.ipw_weights(logits(kd), logits(cls), torch.tensor([0]), ratio, standardize=False)
        assert weight.item() == pytest.approx(expected, abs=1e-12)


@each_ratio
@pytest.mark.parametrize('standardize', [True, False])
def test_equals_numpy(ratio, standardize):
    kd, cls, labels = batch()
    expected = numpy_weights(kd.numpy(), cls.numpy(), labels.numpy(), ratio, standardize)
    weights = F.ipw_weights(kd, cls, labels, ratio, standardize)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-10)
    normalized = F.ipw_weights(kd, cls, labels, ratio, standardize, 'batch_mean')
    np.testing.assert_allclose(normalized.numpy(), expected / expected.mean(), rtol=1e-10)


@pytest.mark.parametrize('standardize', [True, False])
def test_above_one_and_the_directions_belong_together(standardize):
    kd, cls, labels = batch()
    a, b = (F.ipw_weights(kd, cls, labels, ratio, standardize) for ratio in RATIOS)
    assert (a > 1).all() and (b > 1).all()
    torch.testing.assert_close(1 / a + 1 / b, torch.ones_like(a))
    assert torch.equal(F.ipw_weights(cls, kd, labels, RATIOS[0], standardize), b)


@each_ratio
@pytest.mark.parametrize('standardize', [True, False])
def test_equal_heads_weigh_two(ratio, standardize):
    kd, _, labels = batch()
    weights = F.ipw_weights(kd, kd, labels, ratio, standardize)
    torch.testing.assert_close(weights, torch.full_like(weights, 2.0))


def test_standardised_weights_do_not_see_scale_and_offset():
    kd, cls, labels = batch()
    expected = F.ipw_weights(kd, cls, labels)
    torch.testing.assert_close(F.ipw_weights(7 * kd + 3, 0.1 * cls - 2, labels), expected)
    raw = F.ipw_weights(kd, cls, labels, standardize=False)
    assert (F.ipw_weights(7 * kd, cls, labels, standardize=False) - raw).abs().max() > 1


@pytest.mark.parametrize(
    ('classes', 'low', 'high'), [(4, 0.26080, 3.44058), (10, 0.27844, 5.53451)]
)
def test_largest_weight_with_standardisation(classes, low, high):
    best = torch.eye(classes, dtype=torch.float64)[:1]
    weight = F.ipw_weights(-best, best, torch.tensor([0]))
    assert weight.item() == pytest.approx(1 + high / low, rel=1e-4)
    assert weight.item() == pytest.approx({4: 14.2, 10: 20.9}[classes], abs=0.05)


def test_normalised_before_clipped():
    kd, cls, labels = batch()
    mean_one = F.ipw_weights(kd, cls, labels, normalize='batch_mean')
    assert mean_one.mean().item() == pytest.approx(1)
    limit = 1.5
    assert (mean_one > limit).any()
    clipped = F.ipw_weights(kd, cls, labels, normalize='batch_mean', clip_max=limit)
    assert torch.equal(clipped, mean_one.clamp(max=limit))
    plain = F.ipw_weights(kd, cls, labels)
    assert torch.equal(F.ipw_weights(kd, cls, labels, clip_max=3), plain.clamp(max=3))


@each_ratio
@pytest.mark.parametrize('standardize', [True, False])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_finite_for_large_constant_and_perfect_logits(ratio, standardize, dtype):
    kd = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [5, 5, 5], [1e4, 1e4, -1e4]]).to(dtype)
    labels = torch.tensor([0, 0, 1, 2])
    for cls in (kd, -kd, kd.flip(0)):
        weights = F.ipw_weights(kd, cls, labels, ratio, standardize)
        assert weights.dtype == torch.float32
        assert weights.isfinite().all() and (weights >= 1).all()
    exact = F.ipw_weights(kd.double(), -kd.double(), labels, ratio, standardize)
    weights = F.ipw_weights(kd, -kd, labels, ratio, standardize)
    torch.testing.assert_close(weights.double(), exact, rtol=1e-3, atol=0)


def test_no_gradient_one_class_and_no_row():
    kd, cls, labels = batch()
    assert not F.ipw_weights(kd.requires_grad_(), cls.requires_grad_(), labels).requires_grad
    one = F.ipw_weights(kd[:, :1], cls[:, :1], torch.zeros_like(labels))
    assert torch.equal(one, torch.full_like(one, 2.0))
    for normalize in ('none', 'batch_mean'):
        empty = F.ipw_weights(kd[:0], cls[:0], labels[:0], normalize=normalize)
        assert empty.shape == (0,)


def test_rows_and_classes_may_be_permuted():
    kd, cls, labels = batch()
    rows, classes = torch.randperm(30), torch.randperm(6)
    expected = F.ipw_weights(kd, cls, labels, normalize='batch_mean')
    weights = F.ipw_weights(kd[rows], cls[rows], labels[rows], normalize='batch_mean')
    torch.testing.assert_close(weights, expected[rows])
    renamed = torch.argsort(classes)[labels]
    weights = F.ipw_weights(kd[:, classes], cls[:, classes], renamed, normalize='batch_mean')
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(ratio='kd_over_cl'), "ratio must be one of .*did you mean 'kd_over_cls'"),
        (dict(normalize='batch'), "normalize must be one of .*'batch'.*did you mean 'batch_mean'"),
        (dict(clip_max=0), 'clip_max must be a finite number above 0, got 0'),
        (dict(clip_max=-2.0), 'clip_max must be .* got -2.0'),
        (dict(cls_logits=torch.zeros(3, 5)), r'same shape.*\(3, 4\) and \(3, 5\)'),
        (dict(kd_logits=torch.zeros(3)), r'kd_logits must have shape \(N, C\), got \(3,\)'),
        (dict(cls_logits=[[0.0]]), 'cls_logits must be a tensor.*got a list'),
        (dict(labels=torch.tensor([0, 4, 1])), 'labels must lie in 0 to 3.*got 4'),
        (dict(labels=torch.tensor([0, 1])), r'labels must have shape \(N,\) = \(3,\)'),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        F.ipw_weights(**{**dict(kd_logits=KD, cls_logits=CLS, labels=LABELS), **kwargs})
