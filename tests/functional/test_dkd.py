"""Decoupled distillation against pinned numbers, a numpy reference and the KL divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkd_plugin import functional as F

STUDENT = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0])
# per sample at T = 4: TCKD, NCKD, and their sum with the weights of the plain KL divergence
ROWS = [(0.0014181115, 0.1505276851, 0.1118063167), (0.5030823404, 0.1175651948, 0.5653682823)]
DIGITS = 1e-10


def batch(n: int = 6, classes: int = 5, dtype=torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(n, classes, generator=g, dtype=torch.float64) for _ in 'st')
    return s.to(dtype), t.to(dtype), torch.randint(classes, (n,), generator=g)


def numpy_parts(s, t, labels, temperature):
    """Plain probabilities, row by row; no log space."""
    parts = []
    for a, b, y in zip(s, t, labels, strict=True):
        q, p = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (a, b))
        binary_p, binary_q = np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]])
        tckd = (binary_p * np.log(binary_p / binary_q)).sum()
        p, q = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        parts.append((temperature**2 * tckd, temperature**2 * (p * np.log(p / q)).sum()))
    return np.array(parts).T


def test_pinned_rows():
    target, others = F.dkd_parts(STUDENT, TEACHER, LABELS, 4.0, reduction='none')
    assert target.tolist() == pytest.approx([r[0] for r in ROWS], abs=DIGITS)
    assert others.tolist() == pytest.approx([r[1] for r in ROWS], abs=DIGITS)
    plain = F.kl_divergence(STUDENT, TEACHER, 4.0, reduction='none')
    assert plain.tolist() == pytest.approx([r[2] for r in ROWS], abs=DIGITS)


def test_pinned_means():
    target, others = F.dkd_parts(STUDENT, TEACHER, LABELS)
    assert target.item() == pytest.approx(0.2522502260, abs=DIGITS)
    assert others.item() == pytest.approx(0.1340464400, abs=DIGITS)
    assert F.dkd(STUDENT, TEACHER, LABELS).item() == pytest.approx(1.3246217457, abs=DIGITS)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_equals_numpy(temperature):
    s, t, labels = batch()
    expected = numpy_parts(s.numpy(), t.numpy(), labels.numpy(), temperature)
    parts = F.dkd_parts(s, t, labels, temperature, reduction='none')
    np.testing.assert_allclose(torch.stack(parts).numpy(), expected, rtol=1e-10, atol=1e-14)
    value = F.dkd(s, t, labels, temperature, alpha=0.3, beta=2.5)
    assert value.item() == pytest.approx((0.3 * expected[0] + 2.5 * expected[1]).mean(), rel=1e-10)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_both_parts_make_up_the_kl_divergence(temperature):
    s, t, labels = batch(9, 7)
    target, others = F.dkd_parts(s, t, labels, temperature, 'none')
    sure = (t / temperature).softmax(1).gather(1, labels[:, None]).squeeze(1)
    expected = F.kl_divergence(s, t, temperature, 'none')
    torch.testing.assert_close(target + (1 - sure) * others, expected)


def test_gradient_formula():
    s, t, labels = batch(3, 4)
    s.requires_grad_()
    temperature, alpha, beta = 2.0, 1.5, 3.0
    F.dkd(s, t, labels, temperature, alpha, beta, 'none').sum().backward()
    hot = torch.nn.functional.one_hot(labels, 4).double()
    probabilities = []
    for z in (s.detach() / temperature, t / temperature):
        p = z.softmax(1)
        sure = (p * hot).sum(1, keepdim=True)
        probabilities.append((sure, p * (1 - hot) / (1 - sure)))
    (sure_s, rest_s), (sure_t, rest_t) = probabilities
    # d TCKD = (sure_s - sure_t) d log odds; d NCKD = rest_s - rest_t
    expected = alpha * (sure_s - sure_t) * (hot - rest_s) + beta * (rest_s - rest_t)
    torch.testing.assert_close(s.grad, temperature * expected)


def test_gradcheck_and_no_gradient_for_the_teacher():
    s, t, labels = batch(3, 4)
    s.requires_grad_()
    t.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.dkd(x, t, labels, 2.0, 1.5, 3.0), s)
    F.dkd(s, t, labels).backward()
    assert t.grad is None and s.grad.abs().sum() > 0


def test_a_perfect_student_has_no_loss_and_others_have():
    s, t, labels = batch(20)
    same = F.dkd_parts(t + 5, t, labels, reduction='none')
    assert all(part.abs().max() < 1e-13 for part in same)
    assert all((part > 0).all() for part in F.dkd_parts(s, t, labels, reduction='none'))


def test_only_the_target_part_sees_the_target_logit():
    s, t, labels = batch()
    index = labels[:, None]
    moved = F.dkd_parts(s.scatter_add(1, index, torch.full_like(s, 2.0)), t, labels)
    target, others = F.dkd_parts(s, t, labels)
    torch.testing.assert_close(moved[1], others, rtol=1e-13, atol=0)
    assert abs(moved[0] - target) > 1e-3


def test_rows_and_classes_may_be_permuted():
    s, t, labels = batch(8, 6)
    rows, classes = torch.randperm(8), torch.randperm(6)
    expected = F.dkd(s, t, labels, reduction='none')
    torch.testing.assert_close(
        F.dkd(s[rows], t[rows], labels[rows], reduction='none'), expected[rows]
    )
    renamed = torch.argsort(classes)[labels]
    torch.testing.assert_close(
        F.dkd(s[:, classes], t[:, classes], renamed, reduction='none'), expected
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('autocast', [False, True])
def test_computes_in_float32_or_wider(dtype, autocast):
    s, t, labels = batch(dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = F.dkd(s, t, labels)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = F.dkd(s.double(), t.double(), labels)
    assert out.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('size', [500, 1e4])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_large_logits_stay_finite(size, dtype, temperature):
    rows = torch.tensor([[1.0, -1, 0], [-1, 1, 1], [1, 0, -1], [-1, 0, 1]])
    s = (size * rows).to(dtype).requires_grad_()
    t = (-size * rows).to(dtype)
    for labels in ([0, 0, 0, 0], [1, 1, 1, 1], [2, 1, 0, 2]):
        s.grad = None
        value = F.dkd(s, t, torch.tensor(labels), temperature)
        value.backward()
        assert value.isfinite() and value > size
        assert s.grad.isfinite().all() and s.grad.abs().sum() > 0
        assert F.dkd(s, s, torch.tensor(labels), temperature).abs() < 1e-2


def test_a_sure_teacher_still_says_something_about_the_others():
    # 1 - p of the target is 0 in float32, in which a masked softmax would have nothing left
    s = torch.tensor([[200.0, 1, 2]], requires_grad=True)
    t = torch.tensor([[300.0, 2, 1]])
    target, others = F.dkd_parts(s, t, torch.tensor([0]), 1.0)
    expected = F.kl_divergence(torch.tensor([[1.0, 2]]), torch.tensor([[2.0, 1]]))
    torch.testing.assert_close(others, expected)
    assert target.item() == 0
    others.backward()
    torch.testing.assert_close(s.grad[0, 1] + s.grad[0, 2], torch.tensor(0.0), atol=1e-7, rtol=0)
    assert s.grad[0, 0] == 0 and s.grad[0, 2] > 0.4


def test_one_class_and_two_classes():
    s, t, _ = batch(4, 1)
    s.requires_grad_()
    value = F.dkd(s, t, torch.zeros(4, dtype=torch.long))
    value.backward()
    assert value.item() == 0 and torch.equal(s.grad, torch.zeros_like(s))
    s, t, labels = batch(4, 2)
    target, others = F.dkd_parts(s, t, labels, 2.0, 'none')
    assert torch.equal(others, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(target, F.kl_divergence(s, t, 2.0, 'none'))


@pytest.mark.parametrize('classes', [1, 3])
def test_no_sample_gives_zero_with_a_gradient(classes):
    s = torch.zeros(0, classes, requires_grad=True)
    value = F.dkd(s, torch.zeros(0, classes), torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0 and s.grad.shape == (0, classes)


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        ([0, 1], 'labels must be a tensor.*got a list'),
        (torch.tensor([0.0, 1.0]), 'integer class indices, got dtype torch.float32'),
        (torch.tensor([False, True]), 'integer class indices, got dtype torch.bool'),
        (torch.tensor([0, 1, 2]), r'shape \(N,\) = \(2,\).*got \(3,\)'),
        (torch.tensor([[0, 1]]), r'got \(1, 2\)'),
        (torch.tensor([0, 3]), 'labels must lie in 0 to 2, for the logits have 3 classes, got 3'),
        (torch.tensor([-100, 1]), 'got -100'),
    ],
)
def test_wrong_labels_raise(labels, message):
    with pytest.raises(ValueError, match=message):
        F.dkd(torch.zeros(2, 3), torch.zeros(2, 3), labels)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(temperature=0), 'temperature must be a finite number above 0, got 0'),
        (dict(alpha=-1), 'alpha must be a number of at least 0, got -1'),
        (dict(beta=float('nan')), 'beta must be a number of at least 0, got nan'),
        (dict(reduction='men'), "reduction must be one of 'mean', 'none'.*did you mean 'mean'"),
        (dict(teacher=torch.zeros(2, 4)), r'student \(2, 3\) and teacher \(2, 4\)'),
    ],
)
def test_wrong_options_raise(kwargs, message):
    given = dict(student=torch.zeros(2, 3), teacher=torch.zeros(2, 3), labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=message):
        F.dkd(**{**given, **kwargs})
