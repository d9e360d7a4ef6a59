"""The map functions against pinned numbers, numpy references and the properties of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmkd_plugin import functional as F

# Examples G2 and G4 of the GDD specification.
G2_STUDENT = torch.tensor([[[[1, 2], [3, 4]], [[0, 1], [1, 0]]]], dtype=torch.float64)
G2_TEACHER = torch.tensor([[[[2, 0], [1, 3]], [[4, 0], [0, 4]]]], dtype=torch.float64)
G4_STUDENT = (torch.arange(18, dtype=torch.float64) % 4 / 2).reshape(1, 2, 3, 3)
G4_TEACHER = (3 * torch.arange(18, dtype=torch.float64) % 7 / 2).reshape(1, 2, 3, 3)
DISTANCES = [F.channel_kl, F.pearson_distance, F.feature_mse]


def maps(*shape: int, dtype=torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in 'st')


def numpy_channel_kl(s, t, temperature):
    """Plain probabilities, channel by channel; no log space."""
    out = np.zeros(s.shape[:2])
    for n, c in np.ndindex(*out.shape):
        a, b = np.exp(s[n, c] / temperature), np.exp(t[n, c] / temperature)
        p, q = b / b.sum(), a / a.sum()
        out[n, c] = temperature**2 * (p * np.log(p / q)).sum()
    return out


def test_channel_kl_pinned_g1():
    s = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    t = torch.tensor([[[[0, math.log(3)]]]], dtype=torch.float64)
    assert F.channel_kl(s, t, 1.0).item() == pytest.approx(0.1308120359, abs=1e-10)
    assert F.channel_kl(t, s, 1.0).item() == pytest.approx(0.1438410362, abs=1e-10)
    assert F.channel_kl(s, t, 4.0).item() == pytest.approx(0.1494578650, abs=1e-10)
    assert F.channel_kl(s, t, 4.0).item() / 16 == pytest.approx(0.0093411166, abs=1e-10)


@pytest.mark.parametrize(
    ('temperature', 'kl', 'mean'),
    [(1.0, [0.35456271, 1.20518071], 0.7798717120), (4.0, [0.04187849, 0.17650096], 1.7470355974)],
)
def test_channel_kl_pinned_g2(temperature, kl, mean):
    rows = F.channel_kl(G2_STUDENT, G2_TEACHER, temperature, reduction='none')
    assert rows.shape == (1, 2)
    assert (rows / temperature**2).flatten().tolist() == pytest.approx(kl, abs=1e-8)
    loss = F.channel_kl(G2_STUDENT, G2_TEACHER, temperature)
    assert loss.item() == pytest.approx(mean, abs=1e-10)


def test_channel_kl_gradient_pinned_and_closed_form():
    s = G2_STUDENT.clone().requires_grad_()
    F.channel_kl(s, G2_TEACHER).backward()  # the default temperature is 4
    expected = [-0.21446229, 0.09389663, 0.12056566, 0.0]
    expected += [-0.29323508, 0.29323508, 0.29323508, -0.29323508]
    assert s.grad.flatten().tolist() == pytest.approx(expected, abs=1e-8)
    p_s = torch.softmax(s.detach().flatten(2) / 4, -1)
    p_t = torch.softmax(G2_TEACHER.flatten(2) / 4, -1)
    torch.testing.assert_close(s.grad.flatten(2), 4 / 2 * (p_s - p_t))
    assert s.grad.sum(dim=(2, 3)).abs().max() < 1e-14


@pytest.mark.parametrize(('temperature', 'value'), [(1.0, 0.6196233077), (4.0, 0.7217275345)])
def test_channel_kl_pinned_g4(temperature, value):
    loss = F.channel_kl(G4_STUDENT, G4_TEACHER, temperature)
    assert loss.item() == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize('temperature', [0.7, 1.0, 4.0])
def test_channel_kl_equals_numpy(temperature):
    s, t = maps(2, 3, 4, 5)
    expected = numpy_channel_kl(s.numpy(), t.numpy(), temperature)
    rows = F.channel_kl(s, t, temperature, reduction='none')
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-10)
    assert F.channel_kl(s, t, temperature).item() == pytest.approx(expected.mean(), rel=1e-10)


def test_channel_kl_invariances():
    s, t = maps(2, 3, 4, 5)
    loss = F.channel_kl(s, t)
    shift = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(F.channel_kl(s + shift, t), loss)
    torch.testing.assert_close(F.channel_kl(s, t + shift), loss)
    order = torch.randperm(20)
    s2, t2 = (x.flatten(2)[..., order].reshape(x.shape) for x in (s, t))
    torch.testing.assert_close(F.channel_kl(s2, t2), loss)
    assert abs(F.channel_kl(2 * s, 2 * t) - loss) > 0.01 * loss
    assert (F.channel_kl(s, t, reduction='none') > 0).all()
    assert F.channel_kl(t + shift, t).abs() < 1e-13


@pytest.mark.parametrize(
    ('s', 't', 'value'),
    [(G2_STUDENT, G2_TEACHER, 1.9375), (G4_STUDENT, G4_TEACHER, 0.7191358025)],
)
def test_channel_kl_limit_of_high_temperature(s, t, value):
    """It becomes half the variance over positions of student minus teacher."""
    half_variance = (s - t).flatten(2).var(-1, unbiased=False).mean().item() / 2
    assert half_variance == pytest.approx(value, abs=1e-10)
    assert F.channel_kl(s, t, 1e4).item() == pytest.approx(value, rel=1e-3)
    assert F.channel_kl(s.float(), t.float(), 1e6).isfinite()


def test_pearson_distance_equals_numpy_correlation():
    s, t = maps(2, 3, 4, 5)
    rows = F.pearson_distance(s, t, reduction='none')
    assert rows.shape == (3,)
    for c in range(3):
        r = np.corrcoef(s[:, c].flatten().numpy(), t[:, c].flatten().numpy())[0, 1]
        assert rows[c].item() == pytest.approx(1 - r, rel=1e-9)
    assert F.pearson_distance(s, t).item() == pytest.approx(rows.mean().item(), rel=1e-12)


def test_pearson_distance_ignores_scale_and_shift_and_is_bounded():
    s, t = maps(2, 3, 4, 5)
    loss = F.pearson_distance(s, t)
    scale = torch.tensor([0.1, 1.0, 50.0], dtype=torch.float64).view(1, 3, 1, 1)
    torch.testing.assert_close(F.pearson_distance(s * scale - 7, t), loss)
    torch.testing.assert_close(F.pearson_distance(s, t * scale + 3), loss)
    assert F.pearson_distance(s, s * scale).item() == pytest.approx(0, abs=1e-10)
    assert F.pearson_distance(s, -s).item() == pytest.approx(2, abs=1e-10)


def test_pearson_distance_of_constant_channels_is_finite():
    s = torch.ones(2, 3, 4, 5, requires_grad=True)
    loss = F.pearson_distance(s, maps(2, 3, 4, 5, dtype=torch.float32)[1])
    loss.backward()
    assert loss.item() == pytest.approx(0.5, abs=1e-3)
    assert s.grad.isfinite().all()
    assert F.pearson_distance(s, s).item() == 0


def plain_distance(s, t):
    """By standardised maps, as the equation reads."""
    s, t = F.standardize_channels(s), F.standardize_channels(t)
    return (s - t).square().mean((0, 2, 3)) / 2


def value_and_slope(function, s, t):
    s = s.detach().clone().requires_grad_()
    values = function(s, t)
    factors = torch.arange(1, len(values) + 1, dtype=values.dtype)
    return values.detach(), torch.autograd.grad((values * factors).sum(), s)[0]


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_pearson_distance_by_sums_is_that_of_standardised_maps(layout):
    s, t = (x.contiguous(memory_format=layout) for x in maps(2, 3, 4, 5))
    s[:, 1] = t[:, 1] * 2 + 1e-3 * s[:, 1]  # nearly equal
    got = value_and_slope(lambda a, b: F.pearson_distance(a, b, 'none'), s, t)
    torch.testing.assert_close(got, value_and_slope(plain_distance, s, t), rtol=1e-9, atol=1e-12)


def test_pearson_distance_has_the_gradient_of_finite_differences():
    s, t = maps(2, 3, 2, 4)
    s[:, 2], t[:, 1] = 1e-6 * s[:, 2], 5.3  # of the size of the floor; constant
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.pearson_distance(x, t, 'none'), s, eps=1e-9)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_pearson_distance_of_half_precision_is_that_of_the_widened_maps(dtype):
    s, t = maps(2, 3, 8, 8, dtype=dtype)
    narrow = value_and_slope(lambda a, b: F.pearson_distance(a, b, 'none'), s, t)
    wide = value_and_slope(lambda a, b: F.pearson_distance(a, b, 'none'), s.float(), t.float())
    torch.testing.assert_close(narrow[0], wide[0])
    assert narrow[0].dtype == torch.float32 and narrow[1].dtype == dtype
    torch.testing.assert_close(narrow[1], wide[1].to(dtype))


@pytest.mark.parametrize('mean', [1e4, -1e4])
def test_pearson_distance_far_from_zero(mean):
    s, t = (x / 3 + mean for x in maps(4, 3, 32, 32, dtype=torch.float32))  # standard deviation 1
    got = value_and_slope(lambda a, b: F.pearson_distance(a, b, 'none'), s, t)
    exact = value_and_slope(plain_distance, s.double(), t.double())
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=0)
    error = (got[1].double() - exact[1].double()).abs().max() / exact[1].abs().max()
    assert error < 1e-3  # float32 has steps of 1e-3 there


@pytest.mark.parametrize('whose', ['student', 'teacher'])
def test_pearson_distance_of_channels_that_do_not_vary(whose):
    """At an offset, where the smallest rounding of a mean is as large as the floor."""
    s, t = maps(2, 3, 4, 5, dtype=torch.float32)
    constant = s if whose == 'student' else t
    constant[:, 0], constant[:, 1], constant[:, 2] = 5.3, 0, 1e6
    values, slope = value_and_slope(lambda a, b: F.pearson_distance(a, b, 'none'), s, t)
    expected = value_and_slope(plain_distance, s, t)
    torch.testing.assert_close(values, expected[0], rtol=1e-5, atol=1e-6)
    size = expected[1].abs().amax((0, 2, 3)).clamp(min=1)
    assert ((slope - expected[1]).abs().amax((0, 2, 3)) / size).max() < 1e-3


def test_pearson_distance_of_nothing_is_0():
    s = torch.zeros(0, 3, 4, 5, requires_grad=True)
    F.pearson_distance(s, torch.zeros(0, 3, 4, 5)).backward()
    assert F.pearson_distance(s, s).item() == 0 and s.grad.shape == s.shape


def test_standardize_channels_uses_batch_and_positions():
    x = 5 * maps(2, 3, 4, 5)[0] + 2
    y = F.standardize_channels(x).numpy()
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, rtol=1e-9)
    assert np.abs(y.mean(axis=(2, 3))).max() > 0.01


def test_feature_mse_normalisations():
    s, t = maps(2, 3, 4, 5)
    squares = (s.numpy() - t.numpy()) ** 2
    assert F.feature_mse(s, t).item() == pytest.approx(squares.mean(), rel=1e-12)
    batch = F.feature_mse(s, t, normalize='batch')
    assert batch.item() == pytest.approx(squares.sum() / 2, rel=1e-12)
    rows = F.feature_mse(s, t, reduction='none')
    np.testing.assert_allclose(rows.numpy(), squares.mean(axis=(1, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize('function', DISTANCES)
def test_gradients(function):
    s, t = maps(2, 2, 2, 3)
    s.requires_grad_()
    t.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, t), s)
    function(s, t).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


@pytest.mark.parametrize('function', DISTANCES)
@pytest.mark.parametrize('times', [(3, 1, 1, 1), (1, 1, 2, 3)])
def test_tiling_changes_nothing(function, times):
    s, t = maps(2, 3, 4, 5)
    torch.testing.assert_close(function(s.repeat(times), t.repeat(times)), function(s, t))


@pytest.mark.parametrize('function', DISTANCES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('autocast', [False, True])
def test_computes_in_float32_or_wider(function, dtype, autocast):
    s, t = maps(2, 3, 4, 5, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = function(s, t)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert out.item() == pytest.approx(function(s.double(), t.double()).item(), rel=1e-5)


@pytest.mark.parametrize('function', DISTANCES)
@pytest.mark.parametrize(
    ('size', 'dtype'),
    [(500, torch.float32), (500, torch.float16), (1e4, torch.float16), (1e4, torch.bfloat16)],
)
def test_large_values_stay_finite(function, size, dtype):
    sign = torch.tensor([1, -1, 1, 1, -1, 0]).view(1, 1, 2, 3)
    s = (size * sign).to(dtype).requires_grad_()
    t = (size * sign.flip(3)).to(dtype)
    loss = function(s, t)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert s.grad.isfinite().all()


@pytest.mark.parametrize('function', DISTANCES)
def test_an_empty_batch_gives_zero(function):
    empty = torch.zeros(0, 3, 4, 5, requires_grad=True)
    loss = function(empty, empty)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(
    ('mode', 'shape'),
    [('channel', (4, 8, 16, 16)), ('shared', (4, 1, 16, 16)), ('scalar', (4, 8, 1, 1))],
)
def test_noise_has_the_shape_of_its_mode(mode, shape):
    x = torch.zeros(4, 8, 16, 16)
    noise = F.add_noise(x, mode, generator=torch.Generator().manual_seed(3))
    core = noise[tuple(slice(0, n) for n in shape)]
    assert torch.equal(noise, core.expand_as(x))
    # and it varies along every dimension that the core has
    for dim, size in enumerate(shape):
        if size > 1:
            assert core.std(dim).min() > 0


@pytest.mark.parametrize(('mode', 'tolerance'), [('channel', 0.01), ('shared', 0.05)])
def test_noise_statistics(mode, tolerance):
    x = torch.full((8, 16, 32, 32), 5.0)
    noise = F.add_noise(x, mode, std=2.0, generator=torch.Generator().manual_seed(0)) - x
    assert noise.mean().abs() < 2 * tolerance
    assert noise.std().item() == pytest.approx(2.0, rel=tolerance)


def test_noise_none_draws_nothing_and_a_generator_spares_the_global_state():
    x = torch.randn(2, 3, 4, 4)
    state = torch.get_rng_state()
    assert torch.equal(F.add_noise(x, 'none'), x)
    g = torch.Generator().manual_seed(1)
    before = g.get_state()
    F.add_noise(x, 'none', generator=g)
    assert torch.equal(g.get_state(), before)
    a = F.add_noise(x, generator=g)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(F.add_noise(x, generator=g), a)
    assert torch.equal(F.add_noise(x, generator=torch.Generator().manual_seed(1)), a)
    F.add_noise(x)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_is_drawn_in_float32_and_passes_the_gradient(dtype):
    x = torch.zeros(1, 2, 3, 3, dtype=dtype, requires_grad=True)
    out = F.add_noise(x, generator=torch.Generator().manual_seed(0))
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.detach().float(), expected)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_noise_std_zero_is_no_noise():
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(F.add_noise(x, std=0), x)


def test_mask_is_shared_by_channels_and_blocks_the_gradient():
    x = torch.ones(4, 3, 50, 50, requires_grad=True)
    out = F.mask_positions(x, 0.65, torch.Generator().manual_seed(0))
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert not torch.equal(out[0], out[1])
    assert (1 - out.mean()).item() == pytest.approx(0.65, abs=0.02)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert torch.equal(F.mask_positions(x, 0.0), x)


def test_channel_mask_is_shared_by_positions_and_blocks_the_gradient():
    x = torch.ones(4, 500, 3, 2, requires_grad=True)
    out = F.mask_channels(x, 0.15, torch.Generator().manual_seed(0))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    assert not torch.equal(out[0], out[1])
    assert (1 - out.mean()).item() == pytest.approx(0.15, abs=0.02)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert torch.equal(F.mask_channels(x, 0.0), x)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda x: F.channel_kl(x, x, 0.0), 'temperature must be a finite number above 0'),
        (lambda x: F.channel_kl(x, x, reduction='sum'), "one of 'mean', 'none', got 'sum'"),
        (lambda x: F.channel_kl(x, x[:, :, :2]), r'student \(2, 3, 4, 5\) and teacher \(2, 3, 2'),
        (lambda x: F.channel_kl(x[0], x[0]), r'must have shape \(N, C, H, W\), got \(3, 4, 5\)'),
        (lambda x: F.pearson_distance(x, x[:, :2]), r'teacher \(2, 2, 4, 5\)'),
        (lambda x: F.pearson_distance(x, x, reduction='x'), "reduction must be one of.*got 'x'"),
        (lambda x: F.feature_mse(x, x[:1]), r'teacher \(1, 3, 4, 5\)'),
        (lambda x: F.feature_mse(x, x, normalize='bach'), "did you mean 'batch'"),
        (lambda x: F.add_noise(x, 'chanel'), "mode must be one of.*did you mean 'channel'"),
        (lambda x: F.add_noise(x, std=-1), 'std must be a number of at least 0, got -1'),
        (lambda x: F.add_noise(x.flatten(1)), r'x must have shape \(N, C, H, W\), got \(2, 60\)'),
        (lambda x: F.add_noise(x.int()), 'x must be a float tensor, got dtype torch.int32'),
        (lambda x: F.mask_channels(x, 1.0), 'ratio must be a number of at least 0 and below 1'),
        (lambda x: F.mask_positions(x, 1.0), 'ratio must be a number of at least 0 and below 1'),
        (lambda x: F.standardize_channels(x[0]), r'x must have shape'),
    ],
)
def test_wrong_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3, 4, 5))
