"""What every registered loss on logits must do beside test_contract.py."""

from __future__ import annotations

import pytest
import torch
from loss_cases import CLASSES, LOGIT, LOSSES, build, each_logit_loss, extras, inputs, objective

from mmkd_plugin.losses import LogitLoss
from mmkd_plugin.registry import MODELS


@each_logit_loss
def test_every_position_of_a_map_is_a_sample(name):
    s, t = (x.double() for x in inputs(name, batch=12))
    loss = build(name, s, t).double()
    more = extras(name, s)
    expected = objective(loss, loss(s, t, **more))
    maps = {
        key: x.view(2, 2, 3, *x.shape[1:]).movedim(-1, 1) if x.ndim > 1 else x.view(2, 2, 3)
        for key, x in dict(more, s=s, t=t).items()
    }
    assert maps['s'].shape == (2, CLASSES, 2, 3)
    value = objective(loss, loss(maps.pop('s'), maps.pop('t'), **maps))
    torch.testing.assert_close(value, expected)


@each_logit_loss
def test_no_sample_gives_zero_with_a_gradient(name):
    s, t = (x.requires_grad_() for x in inputs(name, batch=0))
    loss = build(name, s, t)
    value = objective(loss, loss(s, t, **extras(name, s)))
    value.backward()
    assert value.item() == 0 and s.grad.shape == (0, CLASSES)
    assert all(x.isfinite() for x in loss.report.values())


@each_logit_loss
def test_one_sample_is_enough(name):
    s, t = (x.requires_grad_() for x in inputs(name, batch=1))
    loss = build(name, s, t)
    value = objective(loss, loss(s, t, **extras(name, s)))
    value.backward()
    assert value.isfinite() and s.grad.isfinite().all()


@each_logit_loss
def test_classes_that_differ_raise(name):
    s, t = inputs(name)
    with pytest.raises(ValueError, match=rf'{name} needs the same classes.*\(4, 6\).*\(4, 5\)'):
        MODELS.build(dict(type=name))(s, t[:, :5], **extras(name, s))


@pytest.mark.parametrize('name', [name for name in LOGIT if LOSSES[name].needs])
def test_what_is_needed_is_asked_for(name):
    s, t = inputs(name)
    more = extras(name, s)
    for missing in LOSSES[name].needs:
        rest = {k: x for k, x in more.items() if k != missing}
        with pytest.raises(ValueError, match=rf'{name} needs {missing}; .*cls_logits'):
            MODELS.build(dict(type=name))(s, t, **rest)


@pytest.mark.parametrize('name', [name for name in LOSSES if 'labels' in LOSSES[name].needs])
def test_wrong_labels_raise(name):
    s, t = inputs(name)
    more = extras(name, s)
    labels = more['labels']
    for wrong, message in (
        (labels.float(), 'labels must be integer class indices, got dtype torch.float32'),
        (labels[:3], r'labels must be \(N,\).*got \(3,\)'),
        (labels.new_tensor([0, 1, 6, 2]), r'labels must lie in 0 to 5.* got 6'),
        (labels.new_tensor([0, 1, -1, 2]), r'labels must lie in 0 to 5.* got -1'),
    ):
        with pytest.raises(ValueError, match=message):
            build(name, s, t)(s, t, **dict(more, labels=wrong))
    for dtype in (torch.int32, torch.uint8):
        loss = build(name, s, t)
        value = objective(loss, loss(s, t, **dict(more, labels=labels.to(dtype))))
        assert torch.equal(value, objective(loss, loss(s, t, **more)))


each_activation = pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])


def adopted(name: str, activation: str, s: torch.Tensor, t: torch.Tensor):
    loss = build(name, s, t).to(s.dtype)
    try:
        loss.adopt(activation)
    except ValueError:
        pytest.skip(f'{name} is not for {activation} logits')
    return loss


@each_logit_loss
@each_activation
def test_weights_are_those_of_a_mean(name, activation):
    s, t = (x.double() for x in inputs(name, batch=5))
    loss, more = adopted(name, activation, s, t), extras(name, s)
    weights = torch.tensor([1.0, 2, 1, 3, 0.5])
    value = objective(loss, loss(s, t, weights=weights, **more))
    report = dict(loss.report)
    torch.testing.assert_close(
        objective(loss, loss(s, t, weights=100 * weights, **more)), value, rtol=1e-9, atol=0
    )
    ones = objective(loss, loss(s, t, weights=torch.ones(5), **more))
    plain = objective(loss, loss(s, t, **more))
    torch.testing.assert_close(ones, plain, rtol=1e-12, atol=0)
    assert loss.report.keys() == report.keys()
    if not loss.batch_coupled:
        rows = [
            objective(
                loss, loss(s[i : i + 1], t[i : i + 1], **{k: x[i : i + 1] for k, x in more.items()})
            )
            for i in range(5)
        ]
        expected = (torch.stack(rows) * weights).sum() / weights.sum()
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


@each_logit_loss
@each_activation
@pytest.mark.parametrize('bad', [0.0, 1e4, float('nan'), float('inf')])
def test_rows_of_weight_zero_have_no_influence(name, activation, bad):
    s, t = (x.double() for x in inputs(name, batch=8))
    loss, more = adopted(name, activation, s, t), extras(name, s)
    counted = torch.tensor([True, False, True, True, False, False, True, True])
    weights = counted * torch.tensor([1.0, 9, 2, 1, 9, 9, 3, 1])
    few = s[counted].requires_grad_()
    expected = objective(
        loss,
        loss(few, t[counted], weights=weights[counted], **{k: x[counted] for k, x in more.items()}),
    )
    report = dict(loss.report)
    expected.backward()
    grads = [p.grad.clone() for p in loss.parameters()]
    loss.zero_grad()
    for x in (s, t, more.get('features', s)):
        x[~counted] = bad
    if 'labels' in more:
        more['labels'][~counted] = 255
    s.requires_grad_()
    value = objective(loss, loss(s, t, weights=weights, **more))
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(s.grad[counted], few.grad)
    assert s.grad[~counted].eq(0).all()
    torch.testing.assert_close([p.grad for p in loss.parameters()], grads)
    torch.testing.assert_close(dict(loss.report), report)


@each_logit_loss
@each_activation
def test_no_weight_at_all_gives_zero_with_a_gradient(name, activation):
    s, t = (x.requires_grad_() for x in inputs(name))
    loss = adopted(name, activation, s, t)
    value = objective(loss, loss(s, t, weights=torch.zeros(4), **extras(name, s)))
    (65536.0 * value).backward()  # as a gradient scaler does
    assert value.item() == 0 and s.grad.eq(0).all()
    assert all(p.grad.eq(0).all() for p in loss.parameters())
    assert all(x.isfinite() for x in loss.report.values())


@each_logit_loss
def test_a_nan_is_not_taken_for_a_row_that_does_not_count(name):
    s, t = inputs(name)
    loss, more = build(name, s, t), extras(name, s)
    weights = torch.tensor([1.0, float('nan'), 1, 1])
    assert loss(s, t, weights=weights, **more).isnan()
    s[0, 0] = float('nan')
    assert loss(s, t, weights=torch.ones(4), **more).isnan()


@each_logit_loss
def test_rows_are_what_the_mean_is_of(name):
    s, t = (x.double() for x in inputs(name))
    loss, more = build(name, s, t).double(), extras(name, s)
    value = loss(s, t, **more)
    if type(loss).rows is LogitLoss.rows:
        assert not loss.separable
        return
    rows = loss.rows(s, t, **more)
    assert rows.shape == (4,)
    torch.testing.assert_close(rows.mean(), value)
    if loss.separable:
        alone = [
            loss.rows(s[i : i + 1], t[i : i + 1], **{k: x[i : i + 1] for k, x in more.items()})
            for i in range(4)
        ]
        torch.testing.assert_close(torch.cat(alone), rows)
        assert not list(loss.parameters()) and not loss.batch_coupled


@each_logit_loss
@each_activation
def test_the_activation_is_known_or_refused(name, activation):
    s, t = inputs(name)
    loss = build(name, s, t)
    assert loss.activation == 'softmax'
    with pytest.raises(ValueError, match="activation must be one of 'softmax', 'sigmoid', got"):
        loss.adopt('relu')
    loss = adopted(name, activation, s, t)
    assert loss.activation == activation
    values = loss(s, t, **extras(name, s)), build(name, s, t)(s, t, **extras(name, s))
    assert torch.equal(*values) == (activation == 'softmax' or name == 'CKDLoss')


@each_logit_loss
@pytest.mark.parametrize('weights', [torch.ones(3), torch.ones(4, 1)])
def test_wrong_weights_raise(name, weights):
    s, t = inputs(name)
    with pytest.raises(ValueError, match=r'weights must be \(N,\) or \(N, H, W\)'):
        build(name, s, t)(s, t, weights=weights, **extras(name, s))
