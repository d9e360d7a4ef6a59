"""Function matching is the KL divergence without labels: its pinned numbers and properties."""

from __future__ import annotations

import math

import pytest
import torch

from mmkd_plugin import functional as F

STUDENT = torch.tensor([[0.5, -0.5, 1], [0, 0, 0]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 0, -1], [1, 1, 3]], dtype=torch.float64)
SECOND = torch.tensor([[0, 1, 0], [2, 2, 0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ('temperature', 'rows', 'mean'),
    [
        (1.0, [0.67305415, 0.43303961], 0.5530468808),
        (2.0, [0.94416198, 0.49313784], 0.7186499073),
        (10.0, [1.07537572, 0.46258754], 0.7689816296),
    ],
)
def test_pinned(temperature, rows, mean):
    values = F.kl_divergence(STUDENT, TEACHER, temperature, 'none')
    assert values.tolist() == pytest.approx(rows, abs=1e-8)
    assert F.kl_divergence(STUDENT, TEACHER, temperature).item() == pytest.approx(mean, abs=1e-10)
    log_p, log_q = ((z / temperature).log_softmax(1) for z in (TEACHER, STUDENT))
    other = torch.nn.functional.kl_div(log_q, log_p, reduction='batchmean', log_target=True)
    assert (other * temperature**2).item() == pytest.approx(mean, abs=1e-10)


def test_pinned_zero_student_leaves_the_entropy():
    values = F.kl_divergence(torch.zeros_like(TEACHER), TEACHER, 1.0, 'none')
    assert values.tolist() == pytest.approx([0.57434567, 0.43303961], abs=1e-8)
    p = TEACHER.softmax(1)
    torch.testing.assert_close(values, math.log(3) + (p * p.log()).sum(1))


def test_pinned_limit_of_high_temperature():
    centred = STUDENT - STUDENT.mean(1, keepdim=True) - TEACHER + TEACHER.mean(1, keepdim=True)
    limit = centred.square().sum(1) / (2 * 3)
    assert limit.tolist() == pytest.approx([1.08333333, 0.44444444], abs=1e-8)
    values = F.kl_divergence(STUDENT, TEACHER, 1e4, 'none')
    torch.testing.assert_close(values, limit, rtol=1e-3, atol=0)


def test_pinned_two_teachers_are_summed():
    values = F.kl_divergence(STUDENT, TEACHER, 1.0, 'none')
    values = values + F.kl_divergence(STUDENT, SECOND, 1.0, 'none')
    assert values.tolist() == pytest.approx([1.27200304, 0.64627034], abs=1e-8)
    p, q = TEACHER.softmax(1), SECOND.softmax(1)
    entropies = -(p * p.log() + q * q.log()).sum(1)
    cross = -((p + q) / 2 * STUDENT.log_softmax(1)).sum(1)
    torch.testing.assert_close(values, 2 * cross - entropies)


def test_zero_for_logits_that_differ_by_a_constant():
    assert F.kl_divergence(TEACHER + 3, TEACHER).abs().item() < 1e-15
