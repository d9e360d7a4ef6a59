"""KDLoss: pinned numbers, maps of logits, sigmoid logits."""

from __future__ import annotations

import pytest
import torch

from mmkd_plugin import functional as F
from mmkd_plugin.losses import KDLoss

STUDENT = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1]], dtype=torch.float64)


def test_pinned():
    assert KDLoss()(STUDENT, TEACHER).item() == pytest.approx(0.3385872995, abs=1e-10)
    value = KDLoss(temperature=1.0)(STUDENT, TEACHER).item()
    assert value == pytest.approx(0.1390868379, abs=1e-10)


def test_sigmoid_logits():
    expected = F.binary_kl(STUDENT, TEACHER, 2.0)
    value = KDLoss(temperature=2.0, use_sigmoid=True)(STUDENT, TEACHER)
    assert torch.equal(value, expected)
    assert abs(value - F.kl_divergence(STUDENT, TEACHER, 2.0)) > 1e-3


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_every_position_of_a_map_is_a_sample(use_sigmoid):
    s, t = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    function = F.binary_kl if use_sigmoid else F.kl_divergence
    values = [
        function(s[:, :, y, x], t[:, :, y, x], 4.0, reduction='none')
        for y in range(3)
        for x in range(5)
    ]
    expected = torch.cat(values).mean()
    torch.testing.assert_close(KDLoss(use_sigmoid=use_sigmoid)(s, t), expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        ((2, 4), (2, 5), r'same classes.*student \(2, 4\) and teacher \(2, 5\)'),
        ((2, 4), (2, 4, 1, 1), r'student \(2, 4\) and teacher \(2, 4, 1, 1\)'),
        ((2, 4, 3), (2, 4, 3), r'logits \(N, C\) or \(N, C, H, W\).*student tensor.*\(2, 4, 3\)'),
    ],
)
def test_shapes_that_never_fit_are_refused_when_connected_and_when_called(
    student, teacher, message
):
    loss = KDLoss()
    with pytest.raises(ValueError, match=message):
        loss.connect(student, teacher)
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(student), torch.zeros(teacher))


def test_sizes_may_differ_when_connected_but_not_when_called():
    # the term's resize='bilinear' works between the two
    loss = KDLoss()
    loss.connect((2, 4, 8, 8), (2, 4, 4, 4))
    with pytest.raises(ValueError, match=r'student \(2, 4, 8, 8\) and teacher \(2, 4, 4, 4\)'):
        loss(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 4, 4))


def test_wrong_temperature_raises():
    with pytest.raises(ValueError, match='temperature must be a finite number above 0, got -4'):
        KDLoss(temperature=-4)


def test_follows_the_head():
    loss = KDLoss(2.0)
    assert torch.equal(loss(STUDENT, TEACHER), F.kl_divergence(STUDENT, TEACHER, 2.0))
    loss.adopt('sigmoid')
    assert torch.equal(loss(STUDENT, TEACHER), F.binary_kl(STUDENT, TEACHER, 2.0))
    KDLoss(use_sigmoid=True).adopt('sigmoid')
    KDLoss(use_sigmoid=False).adopt('softmax', background=True)


@pytest.mark.parametrize(('use_sigmoid', 'head'), [(True, 'softmax'), (False, 'sigmoid')])
def test_what_contradicts_the_head_is_refused(use_sigmoid, head):
    message = f'use_sigmoid={use_sigmoid} contradicts the head, whose logits are {head} logits'
    with pytest.raises(ValueError, match=message):
        KDLoss(use_sigmoid=use_sigmoid).adopt(head)


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('size', [3, 500, 1e4])
def test_closed_form(sigmoid, temperature, size):
    g = torch.Generator().manual_seed(0)
    shape = (3, 5, 7)  # the classes in the middle
    s, t = (size * torch.randn(shape, generator=g, dtype=torch.float64) for _ in 'st')
    s.requires_grad_()
    loss = KDLoss(temperature, sigmoid)
    rows = (x.movedim(1, -1).flatten(0, 1) for x in (s, t))
    expected = loss.rows(*rows).view(3, 7)
    values = loss.values_along(s.detach(), t, 1)
    assert values.shape == (3, 1, 7)
    torch.testing.assert_close(values[:, 0], expected, rtol=1e-9, atol=1e-8)
    (grad,) = torch.autograd.grad(expected.sum(), s)
    slope = torch.empty(shape, dtype=torch.float64)
    loss.slope_along(s.detach(), t, 1, out=slope)
    torch.testing.assert_close(slope, grad, rtol=1e-9, atol=1e-9)
