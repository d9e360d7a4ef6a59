"""The contrastive loss against pinned numbers, a numpy reference and its properties."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from mmkd_plugin import functional as F

# The package has a function of the same name.
contrastive_module = sys.modules['mmkd_plugin.functional.contrastive']
VARIANTS = ('ts', 'sym', 'ss')
each_variant = pytest.mark.parametrize('variant', VARIANTS)


def rows(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


C2 = rows([3, 4], [4, 3]), rows([2, 0], [0, 3])
C3 = rows([2, 1, 1], [1, 1, 0], [0, 1, 2]), rows([4, 1, 0], [0, 2, 1], [1, 0, 3])
C4 = (
    rows([1, -1, 0], [0, 2, 1], [3, 0, -2], [-1, 1, 1]),
    torch.arange(12, dtype=torch.float64).view(4, 3) - 5,
)
EYE = torch.eye(2, dtype=torch.float64)


def pair(n: int = 7, classes: int = 5, seed: int = 0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return tuple(
        3 * torch.randn(n, classes, generator=g, dtype=torch.float64).to(dtype) for _ in 'st'
    )


def numpy_contrastive(s, t, tau, variant):
    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    def anchored(columns, negatives=None):
        total = 0.0
        for i, anchor in enumerate(t if columns is s else s):
            terms = [cosine(anchor, c) / tau for c in columns]
            if negatives is not None:
                terms = [x if j == i else negatives(i, j) / tau for j, x in enumerate(terms)]
            total += np.log(np.exp(terms).sum()) - terms[i]
        return total / len(s)

    if variant == 'ss':
        return anchored(s, lambda i, j: cosine(s[i], s[j]))
    return anchored(s) + (anchored(t) if variant == 'sym' else 0)


@pytest.mark.parametrize(
    ('data', 'variant', 'values'),  # at temperature 1, 2, 0.5
    [
        ((EYE, EYE), 'ts', (0.31326169, 0.47407698, 0.12692801)),
        ((EYE.flip(0), EYE), 'ts', (1.31326169, 0.97407698, None)),
        ((EYE.flip(0), EYE), 'ss', (0.69314718, None, None)),
        (C2, 'ts', (0.79813887, 0.74439666, 0.91301525)),
        (C2, 'ss', (0.88926045, 0.78719172, 1.11659405)),
        ((C2[0].flip(0), C2[1]), 'ts', (0.59813887, None, None)),
        (C3, 'ts', (0.95743814, 1.02028355, 0.86939019)),
        (C3, 'ss', (0.97607928, 1.03234656, 0.89194514)),
        (C3, 'sym', (1.91449221, 2 * 1.02020338, 2 * 0.86960910)),
        ((C3[1], C3[1]), 'ts', (0.69931479, 0.88450502, None)),
        ((rows([1, 2, 3]).expand(3, 3), C3[1]), 'ts', (1.09861229, None, None)),
        ((rows([1, 2, 3]).expand(3, 3), C3[1]), 'ss', (1.31973454, None, None)),
        ((C3[0], rows([1, 2, 3]).expand(3, 3)), 'ts', (1.11118943, None, None)),
        (C4, 'ts', (1.50185130, 1.42731731, 1.74188670)),
        (C4, 'sym', (1.50185130 + 1.50975019, None, None)),
        (C4, 'ss', (1.46676075, None, None)),
        ((EYE, rows([0, 0], [1, 0])), 'ts', (1.00320443, None, None)),  # a teacher row of zeros
    ],
)
def test_pinned(data, variant, values):
    for temperature, expected in zip((1.0, 2.0, 0.5), values, strict=True):
        if expected is not None:
            value = F.contrastive(*data, temperature, variant).item()
            digits = 2e-8 if variant == 'sym' else 1e-8  # twice, or a sum of, printed numbers
            assert value == pytest.approx(expected, abs=digits), (variant, temperature)


@pytest.mark.parametrize(
    ('anchored', 'values'),
    [
        (C2, (0.79813887, 0.74439666, 0.91301525)),
        (C3, (0.95705408, 1.02012322, 0.86982802)),
        (C4, (1.50975019, None, None)),
    ],
)
def test_pinned_student_anchored_half_of_sym(anchored, values):
    for temperature, expected in zip((1.0, 2.0, 0.5), values, strict=True):
        if expected is not None:
            both = F.contrastive(*anchored, temperature, 'sym')
            half = both - F.contrastive(*anchored, temperature, 'ts')
            assert half.item() == pytest.approx(expected, abs=1e-8)
            swapped = F.contrastive(anchored[1], anchored[0], temperature, 'ts')
            assert half.item() == pytest.approx(swapped.item(), abs=1e-12)


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (C2, [[-0.06158141, 0.04618606], [0.04618606, -0.06158141]]),
        (
            C3,
            [
                [-0.04737781, 0.02429203, 0.07046360],
                [0.11410593, -0.11410593, -0.02051754],
                [0.00018135, 0.06846994, -0.03423497],
            ],
        ),
        (
            (C3[1], C3[1]),
            [
                [-0.00348601, 0.01394405, 0.02677656],
                [0.04662569, -0.01373524, 0.02747048],
                [0.01957532, 0.03278489, -0.00652511],
            ],
        ),
    ],
)
def test_pinned_gradient(data, expected):
    s = data[0].clone().requires_grad_()
    F.contrastive(s, data[1]).backward()
    assert s.grad.flatten().tolist() == pytest.approx(np.ravel(expected).tolist(), abs=1e-8)


@each_variant
@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_equals_numpy(variant, temperature):
    s, t = pair()
    expected = numpy_contrastive(s.numpy(), t.numpy(), temperature, variant)
    assert F.contrastive(s, t, temperature, variant).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_formula():
    s, t = pair()
    s.requires_grad_()
    tau, n = 0.7, len(s)
    F.contrastive(s, t, tau).backward()
    length = s.detach().norm(dim=1, keepdim=True)
    unit_s, unit_t = s.detach() / length, t / t.norm(dim=1, keepdim=True)
    p = (unit_t @ unit_s.T / tau).softmax(1)
    g = (p - torch.eye(n)).T @ unit_t / (n * tau)
    torch.testing.assert_close(s.grad, (g - (g * unit_s).sum(1, keepdim=True) * unit_s) / length)
    assert (s.grad * s).sum(1).abs().max() < 1e-15


@each_variant
def test_gradcheck_and_no_gradient_for_the_teacher(variant):
    s, t = pair(4)
    s.requires_grad_()
    t.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.contrastive(x, t, 0.7, variant), s)
    F.contrastive(s, t, 0.7, variant).backward()
    assert t.grad is None and s.grad.abs().sum() > 0


@each_variant
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_one_sample_or_none_gives_zero(variant, dtype):
    for n in (0, 1):
        s, t = (x.requires_grad_() for x in pair(n, dtype=dtype))
        value = F.contrastive(s, t, 0.3, variant)
        value.backward()
        assert value.item() == 0 and value.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(s.grad, torch.zeros_like(s))


@pytest.mark.parametrize('temperature', [1.0, 2.0])
@pytest.mark.parametrize('n', [2, 64, 512])
def test_bounds_and_special_students(n, temperature):
    low = math.log(1 + (n - 1) * math.exp(-2 / temperature))
    high = math.log(1 + (n - 1) * math.exp(2 / temperature))
    if temperature == 1:
        pinned = {2: (0.12692801, 2.12692801), 64: (2.25403780, 6.14528060)}
        pinned[512] = (4.25072603, 8.23663440)
        assert (low, high) == pytest.approx(pinned[n], abs=1e-8)
    s, t = pair(n, 20)
    assert low < F.contrastive(s, t, temperature) < high
    equal = s[:1].expand(n, 20)
    assert F.contrastive(equal, t, temperature).item() == pytest.approx(math.log(n), abs=1e-12)
    assert F.contrastive(s, equal, temperature) > math.log(n)
    orthogonal = torch.eye(n, dtype=torch.float64)
    value = F.contrastive(3 * orthogonal, orthogonal, temperature).item()
    expected = math.log(math.exp(1 / temperature) + n - 1) - 1 / temperature
    assert value == pytest.approx(expected, abs=1e-12)
    if temperature == 1 and n > 2:
        assert value == pytest.approx({64: 3.18537715, 512: 5.24167503}[n], abs=1e-8)


def test_high_temperature_forgets_everything():
    assert F.contrastive(*pair(9), 1e6).item() == pytest.approx(math.log(9), abs=1e-5)


def test_two_samples_in_closed_form():
    s, t = pair(2)
    m = torch.nn.functional.normalize(t, dim=1) @ torch.nn.functional.normalize(s, dim=1).T / 0.7
    expected = torch.nn.functional.softplus(torch.stack([m[0, 1] - m[0, 0], m[1, 0] - m[1, 1]]))
    torch.testing.assert_close(F.contrastive(s, t, 0.7), expected.mean())


@each_variant
def test_invariances(variant):
    s, t = pair()
    expected = F.contrastive(s, t, 0.7, variant)
    scale = torch.rand(2, 7, 1, dtype=torch.float64) + 0.5
    order, classes = torch.randperm(7), torch.randperm(5)
    rotation = torch.linalg.qr(pair(5)[0])[0]
    for a, b in (
        (s * scale[0], t * scale[1]),
        (s[order], t[order]),
        (s[:, classes], t[:, classes]),
        (s @ rotation, t @ rotation),
    ):
        torch.testing.assert_close(F.contrastive(a, b, 0.7, variant), expected)
    for a, b in ((s + 1, t + 1), (s.roll(1, 0), t)):
        assert abs(F.contrastive(a, b, 0.7, variant) - expected) > 1e-3


def test_variants_agree_where_they_must():
    _, t = pair()
    torch.testing.assert_close(F.contrastive(t, t, 0.7, 'ss'), F.contrastive(t, t, 0.7))
    torch.testing.assert_close(F.contrastive(t, t, 0.7, 'sym'), 2 * F.contrastive(t, t, 0.7))


@each_variant
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('autocast', [False, True])
def test_computes_in_float32_or_wider(variant, dtype, autocast):
    s, t = pair(dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = F.contrastive(s, t, 0.1, variant)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = F.contrastive(s.double(), t.double(), 0.1, variant)
    assert out.item() == pytest.approx(exact.item(), rel=1e-5)


@each_variant
@pytest.mark.parametrize('size', [6e-8, 1e4])  # the smallest number above 0 of float16, and large
def test_tiny_and_large_logits_stay_finite(variant, size):
    s, t = ((x.sign() * size).half().requires_grad_() for x in pair())
    assert (s != 0).all()
    value = F.contrastive(s, t, 1.0, variant)
    value.backward()
    assert value.isfinite()
    torch.testing.assert_close(value, F.contrastive(s.sign().float(), t.sign(), 1.0, variant))
    assert s.grad.isfinite().all() or size < 1  # 1 / 6e-8 leaves the range of float16
    zero = torch.zeros(3, 4, requires_grad=True)
    F.contrastive(zero, torch.ones(3, 4), 1.0, variant).backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(variant='st'), "variant must be one of 'ts', 'sym', 'ss', got 'st'"),
        (dict(variant='symm'), "did you mean 'sym'"),
        (dict(temperature=0.0), 'temperature must be a finite number above 0, got 0.0'),
        (dict(teacher=torch.zeros(3, 3)), r'student \(2, 3\) and teacher \(3, 3\)'),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        F.contrastive(**{**dict(student=torch.zeros(2, 3), teacher=torch.zeros(2, 3)), **kwargs})


@pytest.mark.parametrize('variant', ['ts', 'sym', 'ss'])
def test_rows_of_weight_zero_are_neither_anchors_nor_negatives(variant):
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(7, 4, generator=g, dtype=torch.float64) for _ in 'st')
    weights = torch.tensor([1.0, 0, 2, 1, 0, 0.5, 1])
    kept = weights > 0
    rows = F.contrastive(s[kept], t[kept], 0.7, variant, reduction='none')
    expected = (rows * weights[kept]).sum() / weights.sum()
    value = F.contrastive(s, t, 0.7, variant, weights=weights)
    torch.testing.assert_close(value, expected)
    equal = F.contrastive(s, t, 0.7, variant, weights=kept.double())
    torch.testing.assert_close(equal, F.contrastive(s[kept], t[kept], 0.7, variant))
    assert F.contrastive(s, t, 0.7, variant, weights=torch.zeros(7)).item() == 0


@pytest.mark.parametrize('variant', ['ts', 'sym', 'ss'])
def test_rows_of_other_groups_are_no_negatives(variant):
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in 'st')
    groups = torch.tensor([4, 9, 4, 4, 9, 7])
    rows = F.contrastive(s, t, 0.7, variant, groups=groups, reduction='none')
    for group in (4, 9, 7):
        own = groups == group
        expected = F.contrastive(s[own], t[own], 0.7, variant, reduction='none')
        torch.testing.assert_close(rows[own], expected)
    assert rows[5].item() == 0  # alone in its group
    everything = F.contrastive(s, t, 0.7, variant, groups=torch.zeros(6))
    torch.testing.assert_close(everything, F.contrastive(s, t, 0.7, variant))


def test_weights_and_groups_must_fit():
    for name in ('weights', 'groups'):
        with pytest.raises(
            ValueError, match=rf'{name} must have shape \(B,\) = \(2,\), got \(3,\)'
        ):
            F.contrastive(torch.eye(2), torch.eye(2), **{name: torch.ones(3)})


@each_variant
@pytest.mark.parametrize('more', [(), ('weights',), ('groups',), ('weights', 'groups')])
def test_blocks_are_the_whole_matrix(variant, more, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(23, 7, generator=generator) for _ in range(2))
    extras = dict(
        weights=torch.rand(23, generator=generator).sub(0.3).clamp(min=0),
        groups=torch.arange(23) // 5,
    )
    extras = {key: extras[key] for key in more}
    found = []
    for block in (contrastive_module.BLOCK, 23 * 4, 1):
        monkeypatch.setattr(contrastive_module, 'BLOCK', block)
        own = student.clone().requires_grad_()
        loss = F.contrastive(own, teacher, 0.5, variant, **extras)
        loss.backward()
        found.append((loss.detach(), own.grad))
    for loss, grad in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(grad, found[0][1])


def test_what_blocks_keep_does_not_grow_with_the_square_of_the_rows(monkeypatch):
    monkeypatch.setattr(contrastive_module, 'BLOCK', 2**12)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        F.contrastive(torch.randn(512, 4, requires_grad=True), torch.randn(512, 4))
    assert max(kept) < 2**12 + 1


@each_variant
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('shuffled', [False, True])
def test_groups_by_themselves_are_the_masked_matrix(variant, weighted, shuffled, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(24, 7, generator=generator) for _ in range(2))
    weights = torch.rand(24, generator=generator).sub(0.3).clamp(min=0) if weighted else None
    groups = torch.arange(24) // 6
    if shuffled:  # and of unequal sizes
        groups = groups.clamp(max=2)[torch.randperm(24, generator=generator)]
    found = []
    for small, given in ((24**2, groups), (0, groups), *([(0, 6), (24**2, 6)] * (not shuffled))):
        monkeypatch.setattr(contrastive_module, 'SMALL', small)
        own = student.clone().requires_grad_()
        rows = F.contrastive(own, teacher, 0.5, variant, weights, given, 'none')
        F.contrastive(own, teacher, 0.5, variant, weights, given).backward()
        counted = slice(None) if weights is None else weights > 0
        found.append((rows.detach()[counted], own.grad))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_groups_take_memory_of_their_own_matrices_only():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        F.contrastive(torch.randn(2048, 4, requires_grad=True), torch.randn(2048, 4), groups=256)
    assert sum(kept) < 2 * 2048 * 256 + 2048 * 100
    assert max(kept) <= 2048 * 256


@pytest.mark.parametrize('groups', [0, -2, 4])
def test_a_number_of_rows_that_does_not_divide_them_is_refused(groups):
    with pytest.raises(ValueError, match=f'groups={groups} must divide the number of rows, 6'):
        F.contrastive(torch.eye(6), torch.eye(6), groups=groups)
