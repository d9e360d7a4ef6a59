"""What every registered loss must do; a new loss is checked here without a new line."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from loss_cases import (
    LOSSES,
    QUIET,
    Rng,
    build,
    each_feature_loss,
    each_loss,
    extras,
    inputs,
    objective,
)
from torch import nn

from mmkd_plugin.losses import GenerativeLoss
from mmkd_plugin.registry import MODELS


def test_the_pinned_losses_are_registered():
    pinned = 'KDLoss DKDLoss LoCaLoss CKDLoss IPWDLoss GDDLoss CWDLoss MGDLoss PKDLoss'
    assert set(pinned.split()) <= set(LOSSES)


@each_loss
def test_scalar_float32_finite_and_no_gradient_for_the_teacher(name):
    s, t = (x.requires_grad_() for x in inputs(name))
    loss = build(name, s, t)
    value = loss(s, t, **extras(name, s))
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite() and value > 0
    objective(loss, value).backward()
    assert t.grad is None
    assert s.grad.isfinite().all() and s.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@each_loss
def test_float64_stays_float64(name):
    s, t = (x.double() for x in inputs(name))
    more = extras(name, s)
    assert MODELS.build(dict(type=name))(s, t, **more).dtype == torch.float64  # connects itself
    loss = build(name, s, t).double()
    assert loss(s, t, **more).dtype == torch.float64
    assert all(x.dtype == torch.float64 for x in loss.auxiliary.values())


@each_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_inputs(name, dtype, autocast):
    s, t = (x.to(dtype).requires_grad_() for x in inputs(name))
    loss = build(name, s, t)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        value = loss(s, t, **extras(name, s))
    total = objective(loss, value)
    total.backward()
    assert value.dtype == total.dtype == torch.float32 and total.isfinite()
    assert s.grad.dtype == dtype and s.grad.isfinite().all()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in loss.parameters())


@each_loss
def test_the_maths_does_not_run_in_the_precision_of_autocast(name):
    s, t = inputs(name, equal=True)
    loss = build(name, s, t, **QUIET.get(name, {}))
    if isinstance(loss, GenerativeLoss):
        loss.generator = nn.Identity()
    more = extras(name, s)
    expected = objective(loss, loss(s, t, **more))
    with torch.autocast('cpu', torch.bfloat16):
        assert (s @ s.mT).dtype == torch.bfloat16  # autocast is on
        value = objective(loss, loss(s, t, **more))
    assert torch.equal(value, expected)


@each_feature_loss
def test_convolutions_use_autocast(name):
    s, t = inputs(name)
    loss = build(name, s, t)
    seen = []
    for module in loss.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        loss(s, t)
    assert seen and set(seen) == {torch.bfloat16}


@each_loss
@pytest.mark.parametrize(
    ('size', 'dtype'), [(500, torch.float32), (500, torch.float16), (1e4, torch.float16)]
)
def test_large_inputs_stay_finite(name, size, dtype):
    s, t = inputs(name, equal=True)
    s, t = (x.sign().mul(size).to(dtype).requires_grad_() for x in (s, t))
    loss = build(name, s, t)
    more = {k: x.sign().mul(size) if k == 'features' else x for k, x in extras(name, s).items()}
    value = objective(loss, loss(s, t, **more))
    value.backward()
    assert value.isfinite() and s.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


@each_loss
def test_same_seed_same_loss(name):
    s, t = inputs(name)
    loss = build(name, s, t)
    loss.rng = Rng(3)
    state = torch.get_rng_state()
    first = loss(s, t, **extras(name, s))
    loss.rng = Rng(3)
    assert torch.equal(loss(s, t, **extras(name, s)), first)
    assert torch.equal(torch.get_rng_state(), state), 'drew from the global state despite rng'


@each_loss
def test_random_numbers_resume_from_the_generator_state(name):
    s, t = inputs(name)
    loss = build(name, s, t)
    more = extras(name, s)
    loss.rng = Rng(3)
    loss(s, t, **more)
    state = loss.rng.source.get_state()
    expected = [loss(s, t, **more), loss(s, t, **more)]
    loss.rng = Rng(0)
    loss.rng.source.set_state(state)
    assert all(torch.equal(loss(s, t, **more), e) for e in expected)


@each_loss
def test_state_dict_round_trip(name):
    s, t = inputs(name)
    more = extras(name, s)
    loss = build(name, s, t, **QUIET.get(name, {}))
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(torch.rand_like(parameter))
    other = build(name, s, t, **QUIET.get(name, {}))
    expected = loss(s, t, **more)
    assert not list(loss.parameters()) or not torch.equal(other(s, t, **more), expected)
    other.load_state_dict(loss.state_dict(), strict=True)
    assert torch.equal(other(s, t, **more), expected)
    assert torch.equal(copy.deepcopy(loss)(s, t, **more), expected)


@each_loss
def test_a_split_batch_shows_whether_samples_are_coupled(name):
    s, t = (x.double() for x in inputs(name, batch=6))
    loss = build(name, s, t, **QUIET.get(name, {})).double()
    more = extras(name, s)

    def of(rows: list[int]) -> torch.Tensor:
        return objective(loss, loss(s[rows], t[rows], **{k: x[rows] for k, x in more.items()}))

    whole = of([0, 1, 2, 3, 4, 5])
    halves = (of([0, 1, 2]) + of([3, 4, 5])) / 2
    assert torch.allclose(whole, halves, rtol=1e-9, atol=0) == (not loss.batch_coupled)
    if not loss.batch_coupled:
        torch.testing.assert_close(of(2 * [0, 1, 2, 3, 4, 5]), whole)
    torch.testing.assert_close(of([4, 0, 3, 5, 1, 2]), whole)
    stated = 'Couples the samples' if loss.batch_coupled else 'Does not couple the samples'
    assert stated in LOSSES[name].__doc__


@each_feature_loss
def test_tiled_positions_leave_the_loss_as_it_is(name):
    s, t = inputs(name, equal=True)
    loss = build(name, s, t, **QUIET.get(name, {}))
    if isinstance(loss, GenerativeLoss):
        loss.generator = nn.Identity()  # a convolution would see the seams
    tiled = loss(s.repeat(1, 1, 2, 3), t.repeat(1, 1, 2, 3))
    torch.testing.assert_close(tiled, loss(s, t))


@each_loss
def test_compiles_into_one_graph(name):
    s, t = inputs(name)
    loss = build(name, s, t)
    more = extras(name, s)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend='eager', fullgraph=True)
    torch.manual_seed(1)
    expected = objective(loss, loss(s, t, **more))
    report = dict(loss.report)
    loss.report, loss.auxiliary = {}, {}
    torch.manual_seed(1)
    torch.testing.assert_close(objective(loss, compiled(s, t, **more)), expected)
    torch.testing.assert_close(loss.report, report)


@each_loss
def test_reports_are_detached_scalars_and_auxiliary_losses_train_the_connectors(name):
    s, t = (x.requires_grad_() for x in inputs(name))
    loss = build(name, s, t)
    loss(s, t, **extras(name, s))
    for value in loss.report.values():
        assert value.shape == () and value.dtype == torch.float32 and not value.requires_grad
    for value in loss.auxiliary.values():
        assert value.shape == () and value.isfinite()
        grads = torch.autograd.grad(value, loss.parameters(), allow_unused=True)
        assert any(g is not None and g.any() for g in grads)


@each_feature_loss
def test_align_exists_only_where_channels_differ(name):
    s, t = inputs(name, equal=True)
    assert isinstance(build(name, s, t).align, nn.Identity)
    s, t = inputs(name)
    align = build(name, s, t).align
    assert isinstance(align, nn.Conv2d)
    assert align.weight.shape == (6, 4, 1, 1) and align.weight.dtype == torch.float32
    assert align.bias is not None


@each_feature_loss
def test_connecting_again_keeps_the_connectors_or_is_refused(name):
    s, t = inputs(name)
    loss = build(name, s, t)
    before = [id(p) for p in loss.parameters()]
    loss.connect((1, 4, 9, 9), (1, 6, 3, 3))  # the size is not the connectors' business
    loss(s, t)
    assert [id(p) for p in loss.parameters()] == before
    with pytest.raises(ValueError, match='connected to 4 student and 6 teacher channels.* 6 and 6'):
        loss(t, t)


@each_feature_loss
@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        ((2, 4, 5, 5), (2, 4, 5, 6), r'\(2, 4, 5, 5\) and teacher \(2, 4, 5, 6\).*bilinear'),
        ((2, 4, 5, 5), (1, 4, 5, 5), r'same batch size.*\(2, 4, 5, 5\) and teacher \(1, 4, 5, 5\)'),
        ((2, 4), (2, 4), r'student input of .*Loss must have shape \(N, C, H, W\), got \(2, 4\)'),
        ((2, 4, 5, 5), (2, 4, 25), r'teacher input of .*Loss must have shape.*\(2, 4, 25\)'),
    ],
)
def test_wrong_maps_raise(name, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type=name))(torch.zeros(student), torch.zeros(teacher))


@each_feature_loss
def test_wrong_shapes_raise_when_connected(name):
    with pytest.raises(ValueError, match=rf'{name} compares feature maps.*teacher.*\(2, 4\)'):
        MODELS.build(dict(type=name)).connect((2, 4, 5, 5), (2, 4))


@each_loss
def test_documented(name):
    doc = LOSSES[name].__doc__
    for part in ('.. math::', 'Shape:', 'Example:', '>>> '):
        assert part in doc, f'{name} lacks {part}'
    for argument in inspect.signature(LOSSES[name]).parameters:
        assert f'{argument}: ' in doc, f'{name} does not explain {argument}'
