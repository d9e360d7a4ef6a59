"""IPWDLoss: pinned numbers, the auxiliary head, when weights begin."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mmkd_plugin import functional as F
from mmkd_plugin.losses import DKDLoss, IPWDLoss, KDLoss

# Features through an identity: cls_head then gives the features as its logits.
STUDENT = torch.tensor([[4, 1, 0, -1], [1, 2, 0.5, 0.5], [0, 0.5, 1, 2.5]], dtype=torch.float64)
CLS = torch.tensor([[2, 1, 0, -1], [3, 0, -1, -2], [0, 1, 3, 1]], dtype=torch.float64)
TEACHER = torch.tensor([[5, 1, 0, -2], [2, 2.5, 0, -1], [-1, 0, 2, 3]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2])
GIVEN = dict(labels=LABELS, features=CLS)


def identity_head(**kwargs) -> IPWDLoss:
    loss = IPWDLoss(**kwargs)
    loss.connect((3, 4), (3, 4), (3, 4))
    with torch.no_grad():
        loss.cls_head.weight.copy_(torch.eye(4))
        loss.cls_head.bias.zero_()
    return loss.double()


def batch(n: int = 6, classes: int = 5, features: int = 7):
    g = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(n, classes, generator=g) for _ in 'st')
    labels = torch.randint(classes, (n,), generator=g)
    return s, t, dict(labels=labels, features=torch.randn(n, features, generator=g))


@pytest.mark.parametrize(
    ('kwargs', 'value', 'total'),
    [
        (dict(), 1.6556738117, 1.6078667341),
        (dict(normalize='batch_mean'), 0.3193631926, None),
        (dict(ratio='cls_over_kd'), 0.4488318779, 0.5217089938),
        (dict(ratio='cls_over_kd', normalize='batch_mean'), 0.2774687384, None),
    ],
)
def test_pinned(kwargs, value, total):
    loss = identity_head(**kwargs)
    got = loss(STUDENT, TEACHER, **GIVEN)
    assert got.item() == pytest.approx(value, abs=1e-10)
    assert loss.auxiliary['cls'].item() == pytest.approx(0.2634468300, abs=1e-10)
    ce = cross_entropy(STUDENT, LABELS)
    assert ce.item() == pytest.approx(1.1776030362, abs=1e-10)
    if total:
        assert (0.1 * ce + 0.9 * got).item() == pytest.approx(total, abs=1e-10)


def test_pinned_rows_and_report():
    rows = F.kl_divergence(STUDENT, TEACHER, 4.0, 'none')
    assert rows.tolist() == pytest.approx([0.22835985, 0.39591503, 0.26477542], abs=1e-8)
    assert rows.mean().item() == pytest.approx(0.2963501020, abs=1e-10)
    loss = identity_head()
    loss(STUDENT, TEACHER, **GIVEN)
    weights = [1.65942936, 6.93479874, 6.95866450]
    assert loss.report['weight_max'].item() == pytest.approx(weights[2], abs=1e-8)
    assert loss.report['weight_mean'].item() == pytest.approx(sum(weights) / 3, abs=1e-8)
    loss = identity_head(clip_max=2)
    value = loss(STUDENT, TEACHER, **GIVEN)
    expected = (weights[0] * rows[0] + 2 * rows[1] + 2 * rows[2]) / 3
    assert value.item() == pytest.approx(expected.item(), abs=1e-8)
    assert loss.report['weight_max'].item() == 2


def test_weights_begin_with_their_epoch():
    s, t, more = batch()
    loss = IPWDLoss(start_epoch=3)
    weighted = loss(s, t, **more)  # nobody told the epoch
    loss.set_progress(iteration=20, epoch=2)
    early = loss(s, t, **more)
    assert torch.equal(early, KDLoss()(s, t)) and early != weighted
    assert loss.report['weight_mean'].item() == loss.report['weight_max'].item() == 1
    early_cls = loss.auxiliary['cls']  # the head learns from the beginning
    loss.set_progress(iteration=30, epoch=3)
    assert torch.equal(loss(s, t, **more), weighted)
    assert torch.equal(loss.auxiliary['cls'], early_cls) and early_cls > 0


def test_weights_are_constants_for_the_student():
    s, t, more = batch()
    s.requires_grad_()
    loss = IPWDLoss()
    loss(s, t, **more).backward()
    cls = loss.cls_head(more['features'])
    weights = F.ipw_weights(s, cls, more['labels'])
    softer = (s.detach() / 4).softmax(1) - (t / 4).softmax(1)
    torch.testing.assert_close(s.grad, 4 * weights[:, None] * softer / len(s))
    assert loss.cls_head.weight.grad is None


@pytest.mark.parametrize('detach_aux', [True, False])
def test_the_auxiliary_loss_reaches_the_features_only_when_asked_to(detach_aux):
    s, t, more = batch()
    more['features'].requires_grad_()
    loss = IPWDLoss(detach_aux=detach_aux, aux_weight=0.5)
    value = loss(s.requires_grad_(), t, **more)
    (expected,) = torch.autograd.grad(value, s, retain_graph=True)
    (value + loss.auxiliary['cls']).backward()
    assert torch.equal(s.grad, expected)
    assert (more['features'].grad is None) == detach_aux
    cls = cross_entropy(loss.cls_head(more['features']), more['labels'])
    torch.testing.assert_close(loss.auxiliary['cls'], 0.5 * cls)
    assert loss.cls_head.weight.grad.any() and loss.cls_head.bias.grad.any()


@pytest.mark.parametrize('dkd', [None, dict(beta=2.0), dict(alpha=0.5, beta=0.25)])
def test_weighted_dkd(dkd):
    s, t, more = batch()
    loss = IPWDLoss(base='dkd', dkd=dkd, start_epoch=1)
    value = loss(s, t, **more)
    rows = F.dkd(s, t, more['labels'], 4.0, reduction='none', **(dkd or {}))
    weights = F.ipw_weights(s, loss.cls_head(more['features']), more['labels'])
    torch.testing.assert_close(value, (weights * rows).mean())
    loss.set_progress(0, 0)
    expected = DKDLoss(**(dkd or {}))(s, t, labels=more['labels'])
    assert torch.equal(loss(s, t, **more), expected)


@pytest.mark.parametrize('normalize', ['none', 'batch_mean'])
def test_batches_are_coupled_by_their_mean_only(normalize):
    s, t, more = batch()
    loss = IPWDLoss(normalize=normalize)
    whole = loss(s, t, **more)
    halves = sum(
        loss(s[rows], t[rows], **{k: x[rows] for k, x in more.items()})
        for rows in (slice(3), slice(3, 6))
    )
    assert loss.batch_coupled == (normalize == 'batch_mean')
    assert torch.allclose(whole, halves / 2, rtol=1e-4) != loss.batch_coupled


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_the_head_is_float32_whatever_the_features_are(dtype):
    s, t, more = batch()
    loss = IPWDLoss()
    loss.connect(s.shape, t.shape, more['features'].shape)
    more['features'] = more['features'].to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        loss(s, t, **more)
    assert loss.cls_head.weight.dtype == loss.auxiliary['cls'].dtype == torch.float32
    features = more['features'].float()
    expected = cross_entropy(loss.cls_head(features), more['labels'])
    torch.testing.assert_close(loss.auxiliary['cls'], expected)


def test_connecting():
    loss = IPWDLoss()
    assert not list(loss.parameters())
    with pytest.raises(ValueError, match=r'IPWDLoss needs the shape of the features.*got None'):
        loss.connect((2, 4), (2, 4))
    with pytest.raises(ValueError, match=r'needs the shape of the features.*got \(2, 3, 5, 5\)'):
        loss.connect((2, 4), (2, 4), (2, 3, 5, 5))
    with pytest.raises(ValueError, match=r'same classes.*\(2, 4\) and teacher \(2, 5\)'):
        loss.connect((2, 4), (2, 5), (2, 3))
    loss.connect((2, 4), (2, 4), (2, 3))
    head = loss.cls_head
    assert head.weight.shape == (4, 3) and head.weight.dtype == torch.float32
    loss.connect((9, 4, 8, 8), (9, 4, 8, 8), (9, 3, 8, 8))
    assert loss.cls_head is head
    with pytest.raises(ValueError, match='connected to 3 features and 4 classes.*got 6 and 4'):
        loss.connect((2, 4), (2, 4), (2, 6))


def test_copied_and_pickled_after_a_step():
    s, t, more = batch()
    loss = IPWDLoss()
    expected = loss(s, t, **more)
    assert loss.auxiliary['cls'].requires_grad
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert not other.auxiliary and torch.equal(other(s, t, **more), expected)
    assert loss.auxiliary  # the copy left it alone


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(temperature=0), 'temperature must be a finite number above 0, got 0'),
        (dict(ratio='cls_over_k'), "ratio must be one of .*did you mean 'cls_over_kd'"),
        (dict(normalize='mean'), "normalize must be one of 'none', 'batch_mean', got 'mean'"),
        (dict(clip_max=0), 'clip_max must be a finite number above 0, got 0'),
        (dict(clip_max=-5), 'clip_max must be .* got -5'),
        (dict(start_epoch=-1), 'start_epoch must be a number of at least 0, got -1'),
        (dict(aux_weight=-1), 'aux_weight must be a number of at least 0, got -1'),
        (dict(base='dk'), "base must be one of 'kd', 'dkd', got 'dk'; did you mean"),
        (dict(dkd=dict(beta=2)), r"beside base='dkd', got \{'beta': 2\} beside base='kd'"),
        (dict(base='dkd', dkd=8), "dkd must be a dict .*got 8 beside base='dkd'"),
        (dict(base='dkd', dkd=dict(bet=2)), "dkd has an unknown key 'bet'; nearest: 'beta'"),
        (dict(base='dkd', dkd=dict(beta=-2)), 'dkd.beta must be a number of at least 0, got -2'),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        IPWDLoss(**kwargs)


def test_sigmoid_logits():
    s, t, more = batch()
    more['labels'][:2] = 5  # background
    loss = IPWDLoss(temperature=2.0)
    loss.adopt('sigmoid')
    value = loss(s, t, **more)
    cls = loss.cls_head(more['features'])
    hot = torch.nn.functional.one_hot(more['labels'], 6)[:, :5].float()

    def misfit(logits: torch.Tensor) -> torch.Tensor:
        mean, std = logits.mean(1, keepdim=True), logits.std(1, correction=0, keepdim=True)
        return binary_cross_entropy_with_logits((logits - mean) / std, hot, reduction='none').sum(1)

    weights = 1 + misfit(s) / misfit(cls)
    torch.testing.assert_close(value, (weights * F.binary_kl(s, t, 2.0, 'none')).mean())
    expected = binary_cross_entropy_with_logits(cls, hot, reduction='none').sum(1).mean()
    torch.testing.assert_close(loss.auxiliary['cls'], expected)
    with pytest.raises(ValueError, match="base='dkd' needs softmax logits"):
        IPWDLoss(base='dkd').adopt('sigmoid')


@pytest.mark.parametrize('weights', [None, torch.tensor([1.0, 0, 2, 1, 0, 1])])
def test_predictions_that_share_features_have_a_part_of_the_head_each(weights):
    s, t, more = batch()
    priors = torch.tensor([0, 2, 1, 1, 0, 2])
    loss = IPWDLoss()
    loss.connect(s.shape, t.shape, more['features'].shape, priors=3)
    assert loss.cls_head.out_features == 3 * 5
    assert loss.needs == ('labels', 'features', 'priors') and len(IPWDLoss().needs) == 2
    value = loss(s, t, **more, priors=priors, weights=weights)
    aux = loss.auxiliary['cls']
    share = torch.ones(6) if weights is None else weights
    parts = []
    for a in range(3):
        own = (priors == a) & (share > 0)
        single = IPWDLoss()
        single.connect(s.shape, t.shape, more['features'].shape)
        single.cls_head.weight.data = loss.cls_head.weight.data[5 * a : 5 * a + 5]
        single.cls_head.bias.data = loss.cls_head.bias.data[5 * a : 5 * a + 5]
        rows = {k: x[own] for k, x in more.items()}
        values = single(s[own], t[own], **rows, weights=share[own]), single.auxiliary['cls']
        parts.append(torch.stack(values) * share[own].sum())
    expected = sum(parts) / share.sum()
    torch.testing.assert_close(torch.stack([value, aux]), expected)
    with pytest.raises(ValueError, match='IPWDLoss needs priors'):
        loss(s, t, **more)
    message = 'connected to 7 features and 5 classes, but got 7 and 4'
    with pytest.raises(ValueError, match=message):
        loss.connect((6, 4), (6, 4), (6, 7), priors=3)


def test_the_batch_mean_is_that_of_the_rows_that_count():
    s, t, more = batch()
    loss = IPWDLoss(normalize='batch_mean')
    weights = torch.tensor([1.0, 3, 0, 0, 2, 0])
    loss(s, t, **more, weights=weights)
    assert loss.report['weight_mean'].item() == pytest.approx(1, abs=1e-6)
    raw = F.ipw_weights(s, loss.cls_head(more['features']), more['labels'])
    mean = (raw * weights).sum() / weights.sum()
    assert loss.report['weight_max'].item() == pytest.approx((raw[[0, 1, 4]].max() / mean).item())
