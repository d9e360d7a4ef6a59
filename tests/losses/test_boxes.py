"""BoxDistillLoss: the gate, the weights, and rows that do not count."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import inputs, truth

from mmkd_plugin import functional as F
from mmkd_plugin.losses import BoxDistillLoss

KINDS = ('giou', 'diou', 'l1', 'both')
each_kind = pytest.mark.parametrize('kind', KINDS)


def rows(batch: int = 8):
    s, t = (x.double() for x in inputs('BoxDistillLoss', batch))
    t[::2] += 6  # every other row of the teacher is further off
    return s, t, truth(batch).double()


def test_a_teacher_that_is_further_off_teaches_nothing():
    s, t, y = rows()
    s.requires_grad_()
    loss = BoxDistillLoss(weight=None)
    value = loss(s, t, truth=y)
    value.backward()
    expected = F.giou_loss(s[1::2], t[1::2]) / 2  # a mean over all rows
    torch.testing.assert_close(value, expected)
    assert loss.report['closer'] == 0.5
    assert s.grad[::2].eq(0).all() and s.grad[1::2].any(1).all()


@each_kind
def test_always_needs_no_truth_and_takes_all_rows(kind):
    s, t, _ = rows()
    loss = BoxDistillLoss(kind, when='always', weight=None)
    assert loss.needs == () and not loss.report
    parts = dict(
        giou=F.giou_loss(s, t), diou=F.diou_loss(s, t), l1=F.box_l1(s, t),
        both=F.giou_loss(s, t) + F.box_l1(s, t),
    )  # fmt: skip
    torch.testing.assert_close(loss(s, t), parts[kind])


def test_rows_are_weighed_by_score_or_by_iou():
    s, t, y = rows()
    scores = torch.linspace(0.1, 0.8, 8).double()
    each = BoxDistillLoss(weight=None).rows(s, t, truth=y)
    by_score = BoxDistillLoss().rows(s, t, truth=y, scores=scores)
    torch.testing.assert_close(by_score, each * scores)
    by_iou = BoxDistillLoss(weight='iou').rows(s, t, truth=y)
    torch.testing.assert_close(by_iou, each * F.box_iou(t, y))
    torch.testing.assert_close(
        BoxDistillLoss()(s, t, truth=y, scores=scores), (each * scores).mean()
    )


@each_kind
@pytest.mark.parametrize('noise', [0.0, 1e-5])
def test_a_teacher_that_is_the_student_gives_exactly_nothing(kind, noise):
    """The margin of the gate is above what rounding makes of equal boxes."""
    t = truth(50) + 1.0
    s = (t + noise * torch.randn(50, 4)).requires_grad_()
    value = BoxDistillLoss(kind, weight=None)(s, t, truth=truth(50))
    value.backward()
    assert value == 0 and s.grad.eq(0).all()
    if not noise:
        s.grad = None
        value = BoxDistillLoss(kind, when='always', weight=None)(s, t)
        value.backward()
        assert value <= 1e-6 and s.grad.abs().max() <= 1e-6


@each_kind
@pytest.mark.parametrize('bad', [0.0, 1e30, math.inf, math.nan])
def test_rows_that_do_not_count_have_no_influence(kind, bad):
    s, t, y = rows()
    counted = torch.arange(8) > 2
    expected = BoxDistillLoss(kind, weight=None)(s[counted], t[counted], truth=y[counted])
    for x in (s, t, y):
        x[~counted] = bad
    s.requires_grad_()
    value = BoxDistillLoss(kind, weight=None)(s, t, truth=y, weights=counted.double())
    value.backward()
    torch.testing.assert_close(value, expected)
    assert s.grad[~counted].eq(0).all() and s.grad.isfinite().all()
    assert BoxDistillLoss(kind, weight=None)(s, t, truth=y, weights=torch.zeros(8)) == 0


@each_kind
def test_a_box_of_the_teacher_without_area_teaches_nothing(kind):
    s, t, _ = rows()
    t[0, 2] = t[0, 0]
    t[1, 3] = t[1, 1] - 5
    s.requires_grad_()
    BoxDistillLoss(kind, when='always', weight=None)(s, t).backward()
    assert s.grad[:2].eq(0).all() and s.grad[2:].any(1).all()


@each_kind
def test_a_nan_is_noticed(kind):
    s, t, y = rows()
    for x in (s, t):
        broken = x.clone()
        broken[0, 1] = math.nan
        pair = (broken, t) if x is s else (s, broken)
        assert BoxDistillLoss(kind, weight=None)(*pair, truth=y).isnan()
        assert BoxDistillLoss(kind, when='always', weight=None)(*pair).isnan()


@each_kind
def test_gradients_are_those_of_finite_differences(kind):
    s, t, y = rows()
    loss = BoxDistillLoss(kind, weight='iou', beta=0.1)
    assert torch.autograd.gradcheck(lambda x: loss(x, t, truth=y), s.requires_grad_())


def test_which_rows_it_takes_by_itself():
    gated, always = BoxDistillLoss(), BoxDistillLoss(when='always')
    assert {gated.default_select[kind] for kind in ('dense', 'roi', 'query')} == {'positive'}
    assert always.default_select['dense'] == dict(by='teacher_topk', k=512)
    assert always.default_select['query'] == 'all'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(kind='gio'), "kind must be one of .* got 'gio'; did you mean 'giou'"),
        (dict(when='never'), "when must be one of 'teacher_closer', 'always', got 'never'"),
        (dict(weight='scores'), "weight must be one of 'score', 'iou', .*did you mean 'score'"),
        (dict(weight='iou', when='always'), "weight='iou' is the teacher's IoU with the truth"),
        (dict(beta=-1), 'beta must be a number of at least 0'),
        (dict(margin=1), 'margin must be a number of at least 0 and below 1'),
    ],
)
def test_wrong_options_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoxDistillLoss(**arguments)


def test_wrong_tensors_raise():
    s, t, y = rows()
    with pytest.raises(ValueError, match="needs truth; .* view 'boxes'"):
        BoxDistillLoss()(s, t, scores=s[:, 0])
    with pytest.raises(ValueError, match="needs scores; .* view 'boxes'"):
        BoxDistillLoss()(s, t, truth=y)
    with pytest.raises(ValueError, match=r'compares boxes \(N, 4\).* student .* \(8, 5\)'):
        BoxDistillLoss()(torch.zeros(8, 5), t)
    for name, value in dict(truth=y[:3], scores=y, weights=torch.ones(3)).items():
        given = dict(truth=y, scores=s[:, 0], weights=None) | {name: value}
        with pytest.raises(ValueError, match=rf'BoxDistillLoss: {name} must have shape \(8,'):
            BoxDistillLoss()(s, t, **given)
