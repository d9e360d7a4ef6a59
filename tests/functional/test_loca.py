"""Logit calibration against pinned numbers, a numpy reference and its three requirements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkd_plugin import functional as F

STUDENT = torch.tensor([[1, 0.5, 0.2, 1.5]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0.5, 3]], dtype=torch.float64)
ZERO = torch.tensor([0])


def batch(n: int = 40, classes: int = 6, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    t = 2 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    return t, torch.randint(classes, (n,), generator=g)


def numpy_calibrated(t, labels, alpha, temperature, every_row=False):
    """Probabilities by the published formula, row by row."""
    rows = []
    for z, y in zip(t, labels, strict=True):
        p = np.exp(z / temperature) / np.exp(z / temperature).sum()
        best = max(p[i] for i in range(len(p)) if i != y)
        q = p.copy()
        if best > p[y] or every_row:
            scale = alpha / (1 - p[y] + best)
            q = scale * p
            q[y] = 1 - scale * (1 - p[y])
        rows.append(q)
    return np.array(rows)


@pytest.mark.parametrize(
    ('alpha', 'expected'),
    [
        (0.90, [0.44615385, 0.34615385, 0.13846154, 0.06923077]),
        (0.95, [0.41538462, 0.36538462, 0.14615385, 0.07307692]),
        (0.50, [0.69230769, 0.19230769, 0.07692308, 0.03846154]),
    ],
)
def test_pinned_probabilities(alpha, expected):
    p = torch.tensor([[0.2, 0.5, 0.2, 0.1]], dtype=torch.float64)
    q = F.loca_calibrate(p.log(), ZERO, alpha).softmax(1)[0]
    assert q.tolist() == pytest.approx(expected, abs=1e-8)
    # the scale of the others: alpha times sigma = 0.7692307692
    assert (q[1:] / p[0, 1:]).tolist() == pytest.approx([alpha * 0.7692307692] * 3, abs=1e-10)


@pytest.mark.parametrize(
    ('temperature', 'logit', 'scale', 'expected', 'plain', 'loss'),
    [
        (
            1.0,
            3.2202433749,
            0.6434367731,
            [0.50587705, 0.05492949, 0.03331642, 0.40587705],
            0.0852647733,
            0.1773105400,
        ),
        (
            4.0,
            4.1977152635,
            0.8366351147,
            [0.38646071, 0.17374720, 0.15333137, 0.28646071],
            0.1118063167,
            0.6950673097,
        ),
    ],
)
def test_pinned_logits(temperature, logit, scale, expected, plain, loss):
    moved = F.loca_calibrate(TEACHER, ZERO, 0.9, temperature)
    assert moved[0, 0].item() == pytest.approx(logit, abs=1e-10)
    assert torch.equal(moved[:, 1:], TEACHER[:, 1:])
    q = (moved / temperature).softmax(1)[0]
    assert q.tolist() == pytest.approx(expected, abs=1e-8)
    p = (TEACHER / temperature).softmax(1)[0]
    assert (q[1:] / p[1:]).tolist() == pytest.approx([scale] * 3, abs=1e-10)
    assert F.kl_divergence(STUDENT, TEACHER, temperature).item() == pytest.approx(plain, abs=1e-10)
    assert F.kl_divergence(STUDENT, moved, temperature).item() == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize(
    ('temperature', 'expected', 'calibrated'),
    [
        (1.0, [-0.23594098, 0.10879502, 0.08797368, 0.03917229], True),
        (1.0, [0.03787936, 0.07835561, 0.06951124, -0.18574621], False),
        (4.0, [-0.50264837, 0.22562708, 0.24076992, 0.03625136], True),
    ],
)
def test_pinned_gradient(temperature, expected, calibrated):
    s = STUDENT.clone().requires_grad_()
    t = F.loca_calibrate(TEACHER, ZERO, 0.9, temperature) if calibrated else TEACHER
    F.kl_divergence(s, t, temperature).backward()
    assert s.grad[0].tolist() == pytest.approx(expected, abs=1e-8)
    formula = temperature * ((s.detach() / temperature).softmax(1) - (t / temperature).softmax(1))
    torch.testing.assert_close(s.grad, formula)


def test_pinned_raw_calibration_then_softening():
    moved = F.loca_calibrate(TEACHER, ZERO, 0.9, 1.0)
    q = (moved / 4).softmax(1)[0]
    expected = [0.33035452, 0.18963583, 0.16735303, 0.31265662]
    assert q.tolist() == pytest.approx(expected, abs=1e-8)
    assert (q[0] - q[3]).item() == pytest.approx(0.0176978970, abs=1e-10)
    assert F.kl_divergence(STUDENT, moved, 4.0).item() == pytest.approx(0.2916166770, abs=1e-10)


def test_pinned_all_samples_mode():
    t = torch.tensor([[4, 1, 0, -1]], dtype=torch.float64)
    p = t.softmax(1)[0]
    assert p.tolist() == pytest.approx([0.93037047, 0.04632042, 0.01704033, 0.00626879], abs=1e-8)
    assert torch.equal(F.loca_calibrate(t, ZERO), t)
    q = F.loca_calibrate(t, ZERO, only_mispredicted=False).softmax(1)[0]
    assert q.tolist() == pytest.approx([0.45953767, 0.35953767, 0.13226652, 0.04865813], abs=1e-8)
    assert (q[1] / p[1]).item() == pytest.approx(7.762, abs=1e-3)


def test_pinned_parts_of_dkd():
    moved = F.loca_calibrate(TEACHER, ZERO, 0.9, 4.0)
    plain = [part.item() for part in F.dkd_parts(STUDENT, TEACHER, ZERO)]
    parts = [part.item() for part in F.dkd_parts(STUDENT, moved, ZERO)]
    assert plain == pytest.approx([0.0014181115, 0.1505276851], abs=1e-10)
    assert parts == pytest.approx([0.6027126610, 0.1505276851], abs=1e-10)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('every_row', [False, True])
def test_equals_numpy(temperature, every_row):
    t, labels = batch()
    moved = F.loca_calibrate(t, labels, 0.8, temperature, only_mispredicted=not every_row)
    expected = numpy_calibrated(t.numpy(), labels.numpy(), 0.8, temperature, every_row)
    np.testing.assert_allclose((moved / temperature).softmax(1).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize('alpha', [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_label_leads_by_one_minus_alpha_and_ratios_stay(alpha, temperature):
    t, labels = batch()
    wrong = t.argmax(1) != labels
    assert 0.5 < wrong.double().mean() < 1  # both kinds of rows are there
    p = (t / temperature).softmax(1)
    q = (F.loca_calibrate(t, labels, alpha, temperature) / temperature).softmax(1)
    assert torch.equal(q.argmax(1), labels)
    index = labels[:, None]
    best = q.scatter(1, index, 0.0).amax(1)
    lead = q.gather(1, index).squeeze(1) - best
    torch.testing.assert_close(lead[wrong], torch.full_like(lead[wrong], 1 - alpha))
    ratio = (q / p).scatter(1, index, float('nan'))
    spread = ratio.nan_to_num(-1).amax(1) - ratio.nan_to_num(9).amin(1)
    assert spread.abs().max() < 1e-12
    assert (q.gather(1, index) <= 1 - alpha / 2 + 1e-12)[wrong].all()


def test_correct_rows_and_ties_stay_as_they_are():
    t = torch.tensor([[3, 1, 2], [2, 2, 1], [1, 1, 1], [1, 2, 0]], dtype=torch.float32)
    labels = torch.tensor([0, 0, 2, 0])
    for temperature in (1.0, 3.0):
        moved = F.loca_calibrate(t, labels, temperature=temperature)
        assert torch.equal(moved[:3], t[:3])
        assert torch.equal(moved[3, 1:], t[3, 1:]) and moved[3, 0] > 2


def test_small_alpha_is_the_label_itself():
    t, labels = batch()
    wrong = t.argmax(1) != labels
    q = F.loca_calibrate(t, labels, 1e-9).softmax(1)[wrong]
    hot = torch.nn.functional.one_hot(labels, 6).double()[wrong]
    torch.testing.assert_close(q, hot, atol=1e-8, rtol=0)


def test_the_target_logit_jumps_at_the_decision_boundary():
    above = F.loca_calibrate(torch.tensor([[1.0 - 1e-6, 1.0, 0]]), ZERO).softmax(1)[0]
    assert (above[0] - above[1]).item() == pytest.approx(0.1, abs=1e-5)
    below = F.loca_calibrate(torch.tensor([[1.0 + 1e-6, 1.0, 0]]), ZERO).softmax(1)[0]
    assert (below[0] - below[1]).abs().item() < 1e-5


def test_rows_and_classes_may_be_permuted():
    t, labels = batch()
    rows, classes = torch.randperm(40), torch.randperm(6)
    expected = F.loca_calibrate(t, labels, temperature=4.0)
    moved = F.loca_calibrate(t[rows], labels[rows], temperature=4.0)
    torch.testing.assert_close(moved, expected[rows])
    renamed = torch.argsort(classes)[labels]
    moved = F.loca_calibrate(t[:, classes], renamed, temperature=4.0)
    torch.testing.assert_close(moved, expected[:, classes])


def test_two_classes_and_one():
    t = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log()
    assert F.loca_calibrate(t, ZERO, 0.9).softmax(1)[0].tolist() == pytest.approx([0.55, 0.45])
    for only_mispredicted in (True, False):
        alone = torch.tensor([[2.5]])
        assert torch.equal(
            F.loca_calibrate(alone, ZERO, only_mispredicted=only_mispredicted), alone
        )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('size', [70, 1e4])
def test_a_target_whose_probability_underflows(size, dtype):
    t = torch.tensor([[-size, size, size - 8, 0]]).to(dtype)  # exp(-140) is 0 in float32
    moved = F.loca_calibrate(t, ZERO, 0.9)
    assert moved.dtype == torch.float32
    assert torch.equal(moved[:, 1:], t[:, 1:].float())
    q = (moved - moved.max()).softmax(1)[0]
    assert q.isfinite().all()
    assert (q[0] - q[1]).item() == pytest.approx(0.1, abs=1e-3)
    tiny = torch.tensor([[1e-30, 0.6, 0.4 - 1e-30]], dtype=torch.float64).log()
    q = F.loca_calibrate(tiny, ZERO, 0.9).softmax(1)[0]
    assert q.tolist() == pytest.approx([1 - 0.9 / 1.6, 0.9 * 0.6 / 1.6, 0.9 * 0.4 / 1.6])


def test_no_gradient_no_change_of_the_input_and_no_row():
    t = TEACHER.clone().requires_grad_()
    assert not F.loca_calibrate(t, ZERO).requires_grad
    assert torch.equal(t.detach(), TEACHER)
    assert F.loca_calibrate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).shape == (0, 3)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(alpha=1), 'alpha must be a finite number above 0 and below 1, got 1'),
        (dict(alpha=0.0), 'alpha must be .* got 0.0'),
        (dict(alpha='a'), "alpha must be .* got 'a'"),
        (dict(alpha=float('nan')), 'alpha must be .* got nan'),
        (dict(temperature=-4), 'temperature must be a finite number above 0, got -4'),
        (dict(labels=torch.tensor([4])), 'labels must lie in 0 to 3'),
        (dict(labels=torch.tensor([0, 1])), r'labels must have shape \(N,\) = \(1,\)'),
        (dict(teacher=torch.zeros(4)), r'teacher must have shape \(N, C\), got \(4,\)'),
        (dict(teacher=torch.zeros(1, 4).long()), 'teacher must be a float tensor'),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        F.loca_calibrate(**{**dict(teacher=TEACHER, labels=ZERO), **kwargs})


def sigmoid_case(n: int = 200, classes: int = 6):
    g = torch.Generator().manual_seed(0)
    t = 2 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    return t, torch.randint(classes + 1, (n,), generator=g)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('alpha', [0.5, 0.9, 0.99])
def test_margin_of_sigmoid_logits_by_its_formula(alpha, temperature):
    t, labels = sigmoid_case()
    p, q = ((x / temperature).sigmoid() for x in (t, F.loca_margin(t, labels, alpha, temperature)))
    wrong = 0
    for row in range(len(t)):
        expected = p[row].clone()
        y = int(labels[row])
        if y < 6:
            top = max(p[row, c].item() for c in range(6) if c != y)
            if expected[y] < top:
                expected[y] = min(1 - 1e-6, top + 1 - alpha)
                wrong += 1
        torch.testing.assert_close(q[row], expected, rtol=1e-9, atol=1e-12)
    assert 50 < wrong < 190
    same = labels == 6
    assert torch.equal(F.loca_margin(t, labels, alpha, temperature)[same], t[same])


def test_margin_raises_and_never_lowers():
    t, labels = sigmoid_case()
    for only in (True, False):
        moved = F.loca_margin(t, labels, only_mispredicted=only) - t
        index = labels.clamp(max=5).unsqueeze(1)
        assert (moved.gather(1, index) >= 0).all()
        assert moved.scatter(1, index, 0.0).eq(0).all()
    every = F.loca_margin(t, labels, only_mispredicted=False).sigmoid()
    lead = every.gather(1, index) - every.scatter(1, index, 0.0).amax(1, keepdim=True)
    assert (lead[labels < 6] > 0.1 - 1e-9)[every.gather(1, index)[labels < 6] < 0.999].all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_margin_of_extreme_logits_is_finite(dtype):
    t = torch.tensor([[500.0, -500, -500], [-500, -500, -499], [9, 9, 9]]).to(dtype)
    moved = F.loca_margin(t, torch.tensor([1, 0, 0]), 0.9)
    p = moved.double().sigmoid()
    assert moved.isfinite().all() and moved.dtype != torch.float16
    assert p[0, 1].item() == pytest.approx(1 - 1e-6, abs=1e-7)
    assert p[1, 0].item() == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(moved[2], t[2].to(moved.dtype))  # a tie is on top


def test_margin_with_a_single_class_changes_nothing():
    t = torch.tensor([[-3.0], [2.0]])
    for only in (True, False):
        moved = F.loca_margin(t, torch.tensor([0, 1]), only_mispredicted=only)
        assert torch.equal(moved, t)
