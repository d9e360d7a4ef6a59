"""LoCaLoss: pinned numbers, where calibration happens, what is reported."""

from __future__ import annotations

import pytest
import torch

from mmkd_plugin import functional as F
from mmkd_plugin.losses import KDLoss, LoCaLoss

STUDENT = torch.tensor([[1, 0.5, 0.2, 1.5], [2, 0.5, 0.1, -0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0.5, 3], [4, 1, 0, -1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0])


def rows(loss: LoCaLoss) -> list[float]:
    return [
        loss(STUDENT[n : n + 1], TEACHER[n : n + 1], labels=LABELS[n : n + 1]).item()
        for n in range(2)
    ]


def test_pinned():
    assert rows(LoCaLoss()) == pytest.approx([0.6950673097, 0.5653682823], abs=1e-10)
    first = rows(LoCaLoss(temperature=1.0))[0]
    assert first == pytest.approx(0.1773105400, abs=1e-10)
    raw = rows(LoCaLoss(calibrate_at='raw'))
    assert raw == pytest.approx([0.2916166770, 0.5653682823], abs=1e-10)


def test_pinned_total_with_cross_entropy():
    ce = torch.nn.functional.cross_entropy(STUDENT, LABELS, reduction='none')
    assert ce.tolist() == pytest.approx([1.30957013, 0.38727237], abs=1e-8)
    loss = LoCaLoss()
    total = 0.1 * ce.mean() + 0.9 * loss(STUDENT, TEACHER, labels=LABELS)
    assert total.item() == pytest.approx(0.6520381415, abs=1e-10)
    plain = 0.1 * ce.mean() + 0.9 * KDLoss()(STUDENT, TEACHER)
    assert plain.item() == pytest.approx(0.3895706946, abs=1e-10)
    assert loss.report['mis_instruction'].item() == 0.5


@pytest.mark.parametrize('calibrate_at', ['tempered', 'raw'])
def test_a_teacher_that_is_right_everywhere_leaves_plain_distillation(calibrate_at):
    g = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(20, 5, generator=g) for _ in 'st')
    loss = LoCaLoss(calibrate_at=calibrate_at)
    assert torch.equal(loss(s, t, labels=t.argmax(1)), KDLoss()(s, t))
    assert loss.report['mis_instruction'].item() == 0
    other = loss(s, t, labels=t.argmin(1))
    assert abs(other - KDLoss()(s, t)) > 1 and loss.report['mis_instruction'].item() == 1


def test_raw_and_tempered_agree_at_temperature_one():
    values = [
        LoCaLoss(1.0, calibrate_at=at)(STUDENT, TEACHER, labels=LABELS)
        for at in ('raw', 'tempered')
    ]
    assert torch.equal(*values)


def test_all_samples_lowers_sure_targets():
    every = LoCaLoss(only_mispredicted=False)
    value = rows(every)
    assert value[0] == pytest.approx(0.6950673097, abs=1e-10)
    assert abs(value[1] - 0.5653682823) > 0.01
    every(STUDENT, TEACHER, labels=LABELS)
    assert every.report['mis_instruction'].item() == 0.5  # what the teacher mispredicts, as ever


def test_share_of_mispredicted_positions_of_a_map():
    loss = LoCaLoss()
    t = torch.zeros(1, 3, 2, 2)
    t[0, 1] = 1
    labels = torch.tensor([[[1, 1], [1, 0]]])
    loss(torch.zeros(1, 3, 2, 2), t, labels=labels)
    assert loss.report['mis_instruction'].item() == 0.25


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(temperature=-1), 'temperature must be a finite number above 0, got -1'),
        (dict(alpha=1.0), 'alpha must be a finite number above 0 and below 1, got 1.0'),
        (dict(alpha=0), 'alpha must be .* got 0'),
        (dict(calibrate_at='temper'), "calibrate_at must be one of .*did you mean 'tempered'"),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LoCaLoss(**kwargs)


def sigmoid(**kwargs) -> LoCaLoss:
    loss = LoCaLoss(**kwargs)
    loss.adopt('sigmoid')
    return loss


@pytest.mark.parametrize('calibrate_at', ['tempered', 'raw'])
def test_sigmoid_logits(calibrate_at):
    g = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in 'st')
    wrong, right, background = t[:2].argmin(1), t[2:4].argmax(1), torch.tensor([5, 5])
    labels = torch.cat([wrong, right, background])
    loss = sigmoid(temperature=2.0, calibrate_at=calibrate_at)
    value = loss(s, t, labels=labels)
    raised = F.loca_margin(t, labels, 0.9, 2.0 if calibrate_at == 'tempered' else 1.0)
    torch.testing.assert_close(value, F.binary_kl(s, raised, 2.0))
    assert loss.report['mis_instruction'].item() == 0.5  # of the four with a class
    plain = KDLoss(2.0, use_sigmoid=True)
    untouched = loss(s[2:], t[2:], labels=labels[2:])
    assert torch.equal(untouched, plain(s[2:], t[2:]))
    assert loss.report['mis_instruction'].item() == 0
    assert value != plain(s, t)
    weights = torch.tensor([3.0, 0, 1, 0, 8, 8])
    loss(s, t, labels=labels, weights=weights)
    assert loss.report['mis_instruction'].item() == 0.75
    loss(s[4:], t[4:], labels=labels[4:])
    assert loss.report['mis_instruction'].item() == 0  # nothing to be wrong about


def test_labels_beyond_the_background_raise():
    with pytest.raises(ValueError, match='labels must lie in 0 to 4, .* 4 classes, got 5'):
        sigmoid()(STUDENT, TEACHER, labels=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match='labels must lie in 0 to 3, .* 4 classes, got 4'):
        LoCaLoss()(STUDENT, TEACHER, labels=torch.tensor([0, 4]))
