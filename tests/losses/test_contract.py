"""What every registered loss must do; a new loss is checked here without a new line."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from mmkd_plugin.losses import DistillLoss, FeatureLoss, GenerativeLoss
from mmkd_plugin.registry import MODELS

LOSSES = {
    name: cls
    for name, cls in sorted(MODELS.module_dict.items())
    if inspect.isclass(cls) and issubclass(cls, DistillLoss)
}
FEATURE = [name for name, cls in LOSSES.items() if issubclass(cls, FeatureLoss)]
# options that switch the random part off
QUIET = dict(GDDLoss=dict(noise='none'), MGDLoss=dict(mask_ratio=0.0))
each_loss = pytest.mark.parametrize('name', LOSSES)
each_feature_loss = pytest.mark.parametrize('name', FEATURE)


class Rng:
    """Stands for the distiller's source of random numbers."""

    def __init__(self, seed: int) -> None:
        self.source = torch.Generator().manual_seed(seed)

    def generator(self, device: torch.device) -> torch.Generator:
        assert torch.device(device).type == 'cpu'
        return self.source


def inputs(name: str, batch: int = 4, seed: int = 0, equal: bool = False):
    """Feature losses get maps of 4 and 6 channels (or 6 and 6), the others logits of 6 classes."""
    g = torch.Generator().manual_seed(seed)
    if name not in FEATURE:
        return tuple(2 * torch.randn(batch, 6, generator=g) for _ in 'st')
    student = torch.randn(batch, 6 if equal else 4, 5, 7, generator=g)
    return 2 * student, 2 * torch.randn(batch, 6, 5, 7, generator=g)


def build(name: str, s: torch.Tensor, t: torch.Tensor, **kwargs) -> DistillLoss:
    torch.manual_seed(0)
    loss = MODELS.build(dict(type=name, **kwargs))
    loss.connect(s.shape, t.shape)
    return loss


def test_the_pinned_losses_are_registered():
    assert {'KDLoss', 'GDDLoss', 'CWDLoss', 'MGDLoss', 'PKDLoss'} <= set(LOSSES)


@each_loss
def test_scalar_float32_finite_and_no_gradient_for_the_teacher(name):
    s, t = (x.requires_grad_() for x in inputs(name))
    loss = build(name, s, t)
    value = loss(s, t)
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite() and value > 0
    value.backward()
    assert t.grad is None
    assert s.grad.isfinite().all() and s.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@each_loss
def test_float64_stays_float64(name):
    s, t = (x.double() for x in inputs(name))
    assert MODELS.build(dict(type=name))(s, t).dtype == torch.float64  # connects itself
    loss = build(name, s, t).double()
    assert loss(s, t).dtype == torch.float64


@each_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_inputs(name, dtype, autocast):
    s, t = (x.to(dtype).requires_grad_() for x in inputs(name))
    loss = build(name, s, t)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        value = loss(s, t)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()
    assert s.grad.dtype == dtype and s.grad.isfinite().all()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in loss.parameters())


@each_loss
def test_the_maths_does_not_run_in_the_precision_of_autocast(name):
    s, t = inputs(name, equal=True)
    loss = build(name, s, t, **QUIET.get(name, {}))
    if isinstance(loss, GenerativeLoss):
        loss.generator = nn.Identity()
    expected = loss(s, t)
    with torch.autocast('cpu', torch.bfloat16):
        assert (s @ s.mT).dtype == torch.bfloat16  # autocast is on
        value = loss(s, t)
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
    value = build(name, s, t)(s, t)
    value.backward()
    assert value.isfinite() and s.grad.isfinite().all()


@each_loss
def test_same_seed_same_loss(name):
    s, t = inputs(name)
    loss = build(name, s, t)
    loss.rng = Rng(3)
    state = torch.get_rng_state()
    first = loss(s, t)
    loss.rng = Rng(3)
    assert torch.equal(loss(s, t), first)
    assert torch.equal(torch.get_rng_state(), state), 'drew from the global state despite rng'


@each_loss
def test_random_numbers_resume_from_the_generator_state(name):
    s, t = inputs(name)
    loss = build(name, s, t)
    loss.rng = Rng(3)
    loss(s, t)
    state = loss.rng.source.get_state()
    expected = [loss(s, t), loss(s, t)]
    loss.rng = Rng(0)
    loss.rng.source.set_state(state)
    assert all(torch.equal(loss(s, t), e) for e in expected)


@each_loss
def test_state_dict_round_trip(name):
    s, t = inputs(name)
    loss = build(name, s, t, **QUIET.get(name, {}))
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(torch.rand_like(parameter))
    other = build(name, s, t, **QUIET.get(name, {}))
    assert (name not in FEATURE) or not torch.equal(other(s, t), loss(s, t))
    other.load_state_dict(loss.state_dict(), strict=True)
    assert torch.equal(other(s, t), loss(s, t))
    assert torch.equal(copy.deepcopy(loss)(s, t), loss(s, t))


@each_loss
def test_a_split_batch_shows_whether_samples_are_coupled(name):
    s, t = (x.double() for x in inputs(name, batch=6))
    loss = build(name, s, t, **QUIET.get(name, {})).double()
    whole = loss(s, t)
    halves = (loss(s[:3], t[:3]) + loss(s[3:], t[3:])) / 2
    assert torch.allclose(whole, halves, rtol=1e-9, atol=0) == (not LOSSES[name].batch_coupled)
    if not LOSSES[name].batch_coupled:
        tiled = loss(s.repeat(2, *[1] * (s.ndim - 1)), t.repeat(2, *[1] * (t.ndim - 1)))
        torch.testing.assert_close(tiled, whole)
    stated = 'Couples the samples' if LOSSES[name].batch_coupled else 'Does not couple the samples'
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
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend='eager', fullgraph=True)
    torch.manual_seed(1)
    expected = loss(s, t)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(s, t), expected)


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
