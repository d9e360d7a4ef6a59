"""The logit functions against pinned numbers, a numpy reference and the promises of api.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmkd_plugin import functional as F

STUDENT = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1]], dtype=torch.float64)
FUNCTIONS = [F.kl_divergence, F.binary_kl]


def pair(*shape: int, dtype=torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in 'st')


def numpy_kl(s, t, temperature):
    """Plain probabilities, row by row; no log space."""
    rows = []
    for a, b in zip(s, t, strict=True):
        p = np.exp(b / temperature) / np.exp(b / temperature).sum()
        q = np.exp(a / temperature) / np.exp(a / temperature).sum()
        rows.append(temperature**2 * sum(p * np.log(p / q)))
    return np.array(rows)


def numpy_binary_kl(s, t, temperature):
    rows = []
    for a, b in zip(s, t, strict=True):
        total = 0.0
        for x, y in zip(a, b, strict=True):
            q, p = 1 / (1 + math.exp(-x / temperature)), 1 / (1 + math.exp(-y / temperature))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        rows.append(temperature**2 * total)
    return np.array(rows)


REFERENCES = {F.kl_divergence: numpy_kl, F.binary_kl: numpy_binary_kl}


@pytest.mark.parametrize(('temperature', 'value'), [(4.0, 0.3385872995), (1.0, 0.1390868379)])
def test_pinned_mean(temperature, value):
    assert F.kl_divergence(STUDENT, TEACHER, temperature).item() == pytest.approx(value, abs=1e-10)


def test_pinned_rows_and_total_with_cross_entropy():
    rows = F.kl_divergence(STUDENT, TEACHER, 4.0, reduction='none')
    assert rows.shape == (2,)
    assert rows.tolist() == pytest.approx([0.1118063167, 0.5653682823], abs=1e-10)
    ce = torch.nn.functional.cross_entropy(STUDENT, torch.tensor([0, 0]))
    total = 0.1 * ce + 0.9 * F.kl_divergence(STUDENT, TEACHER, 4.0)
    assert total.item() == pytest.approx(0.3895706946, abs=1e-10)


def test_direction_is_teacher_to_student():
    s = torch.zeros(1, 2, dtype=torch.float64)
    t = torch.tensor([[0, math.log(3)]], dtype=torch.float64)
    assert F.kl_divergence(s, t).item() == pytest.approx(0.1308120359, abs=1e-10)
    assert F.kl_divergence(t, s).item() == pytest.approx(0.1438410362, abs=1e-10)
    assert F.binary_kl(s, t).item() == pytest.approx(0.1308120359, abs=1e-10)


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_equals_numpy(function, temperature):
    s, t = pair(6, 5)
    rows = function(s, t, temperature, reduction='none')
    expected = REFERENCES[function](s.numpy(), t.numpy(), temperature)
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-10)
    assert function(s, t, temperature).item() == pytest.approx(expected.mean(), rel=1e-10)


def test_binary_kl_of_one_class_is_the_softmax_against_zero():
    s, t = pair(7, 1)
    zeros = torch.zeros_like(s)
    expected = F.kl_divergence(torch.cat([s, zeros], 1), torch.cat([t, zeros], 1), 2.0, 'none')
    torch.testing.assert_close(F.binary_kl(s, t, 2.0, 'none'), expected)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_gradients(function):
    s, t = pair(3, 4)
    s.requires_grad_()
    t.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, t, 2.0), s)
    function(s, t, 2.0).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_identity_is_zero_and_tiling_changes_nothing(function, temperature):
    s, t = pair(4, 5)
    assert function(s, s, temperature).abs().item() < 1e-14
    assert (function(s, t, temperature, 'none') > 0).all()
    torch.testing.assert_close(
        function(s.repeat(3, 1), t.repeat(3, 1), temperature), function(s, t, temperature)
    )


def test_softmax_ignores_a_constant_per_row_but_sigmoid_does_not():
    s, t = pair(4, 5)
    torch.testing.assert_close(F.kl_divergence(s + 7, t - 3), F.kl_divergence(s, t))
    assert abs(F.binary_kl(s + 7, t) - F.binary_kl(s, t)) > 1


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('autocast', [False, True])
def test_computes_in_float32_or_wider(function, dtype, autocast):
    s, t = pair(4, 5, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = function(s, t, 3.0)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = function(s.double(), t.double(), 3.0)
    assert out.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize(
    ('size', 'dtype'),
    [(500, torch.float32), (500, torch.float16), (1e4, torch.float16), (1e4, torch.bfloat16)],
)
def test_large_logits_stay_finite(function, size, dtype):
    s = torch.tensor([[size, -size, 0], [-size, size, size]], dtype=dtype, requires_grad=True)
    t = torch.tensor([[-size, size, 0], [size, -size, size]], dtype=dtype)
    loss = function(s, t, 1.0)
    loss.backward()
    assert loss.isfinite() and loss > size
    assert s.grad.isfinite().all() and s.grad.abs().sum() > 0


@pytest.mark.parametrize('function', FUNCTIONS)
def test_no_sample_gives_zero_with_a_gradient(function):
    s = torch.zeros(0, 3, requires_grad=True)
    loss = function(s, torch.zeros(0, 3))
    loss.backward()
    assert loss.item() == 0 and s.grad.shape == (0, 3)


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(reduction='men'), "reduction must be one of 'mean', 'none'.*did you mean 'mean'"),
        (dict(reduction=None), 'reduction must be one of'),
        (dict(temperature=0), 'temperature must be a finite number above 0, got 0'),
        (dict(temperature=-1.0), 'above 0, got -1.0'),
        (dict(temperature=float('nan')), 'got nan'),
        (dict(temperature='4'), "got '4'"),
        (dict(temperature=True), 'got True'),
    ],
)
def test_wrong_options_raise(function, kwargs, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(2, 3), torch.zeros(2, 3), **kwargs)


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r'student \(2, 3\) and teacher \(2, 4\)'),
        (torch.zeros(2, 3), torch.zeros(1, 3), r'student \(2, 3\) and teacher \(1, 3\)'),
        (torch.zeros(3), torch.zeros(3), r'student must have shape \(N, C\), got \(3,\)'),
        (torch.zeros(1, 2, 3, 4), torch.zeros(2, 3), r'student must have shape \(N, C\)'),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), 'student must be a float tensor'),
        (torch.zeros(2, 3), [[0, 0, 0]], 'teacher must be a tensor.*got a list'),
    ],
)
def test_wrong_tensors_raise(function, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        function(student, teacher)
