"""DKDLoss: pinned numbers, and with a calibrated teacher."""

from __future__ import annotations

import pytest
import torch

from mmkd_plugin import functional as F
from mmkd_plugin.losses import DKDLoss

STUDENT = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0])


def test_pinned():
    loss = DKDLoss()
    assert loss(STUDENT, TEACHER, labels=LABELS).item() == pytest.approx(1.3246217457, abs=1e-10)
    assert not loss.report and not loss.auxiliary
    others = DKDLoss(alpha=0, beta=1)(STUDENT, TEACHER, labels=LABELS)
    assert others.item() == pytest.approx(0.1340464400, abs=1e-10)
    target = DKDLoss(alpha=1, beta=0)(STUDENT, TEACHER, labels=LABELS)
    assert target.item() == pytest.approx(0.2522502260, abs=1e-10)


def test_pinned_with_a_calibrated_teacher():
    # the first row is mispredicted, the second is not
    loss = DKDLoss(calibrate=0.9, alpha=1, beta=0)
    value = loss(STUDENT, TEACHER, labels=LABELS).item()
    assert value == pytest.approx((0.6027126610 + 0.5030823404) / 2, abs=1e-10)
    assert loss.report['mis_instruction'].item() == 0.5
    others = DKDLoss(calibrate=0.9, alpha=0, beta=1)(STUDENT, TEACHER, labels=LABELS)
    assert others.item() == pytest.approx(0.1340464400, abs=1e-10)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_calibration_leaves_the_other_classes_alone(temperature):
    g = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(20, 5, generator=g) for _ in 'st')
    labels = torch.randint(5, (20,), generator=g)
    plain, calibrated = (
        [DKDLoss(temperature, alpha, 1 - alpha, calibrate)(s, t, labels=labels) for alpha in (0, 1)]
        for calibrate in (None, 0.9)
    )
    torch.testing.assert_close(calibrated[0], plain[0])
    assert abs(calibrated[1] - plain[1]) > 0.1
    expected = F.dkd(s, F.loca_calibrate(t, labels, 0.9, temperature), labels, temperature)
    value = DKDLoss(temperature, calibrate=0.9)(s, t, labels=labels)
    assert torch.equal(value, expected)


def test_calibration_is_computed_without_autocast():
    loss = DKDLoss(calibrate=0.9)
    expected = loss(STUDENT.float(), TEACHER.float(), labels=LABELS)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(loss(STUDENT.float(), TEACHER.float(), labels=LABELS), expected)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(temperature=0), 'temperature must be a finite number above 0, got 0'),
        (dict(alpha=-0.5), 'alpha must be a number of at least 0, got -0.5'),
        (dict(beta='8'), "beta must be a number of at least 0, got '8'"),
        (dict(calibrate=1.0), 'calibrate must be a finite number above 0 and below 1, got 1.0'),
        (dict(calibrate=0), 'calibrate must be .* got 0'),
        (dict(calibrate=True), 'calibrate must be .* got True'),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DKDLoss(**kwargs)


def test_a_head_of_sigmoid_logits_is_refused():
    DKDLoss().adopt('softmax', background=True)
    with pytest.raises(ValueError, match='sigmoid logits, whose classes share no.*KDLoss or LoCa'):
        DKDLoss().adopt('sigmoid')
