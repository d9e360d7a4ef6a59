"""GDDLoss with its real layers: pinned numbers and properties of the specification."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmkd_plugin import functional as F
from mmkd_plugin.losses import CWDLoss, GDDLoss, MGDLoss

NOISES = ['channel', 'shared', 'scalar', 'none']


def ramp(count: int, *shape: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64).reshape(shape)


# Example G2/G3: two channels of 2x2, generator set to delta kernels.
G3_STUDENT = torch.tensor([[[[1, 2], [3, 4]], [[0, 1], [1, 0]]]], dtype=torch.float64)
G3_TEACHER = torch.tensor([[[[2, 0], [1, 3]], [[4, 0], [0, 4]]]], dtype=torch.float64)
G3_NOISE = dict(
    shared=[[[[1, -1], [0.5, 0]]]],
    channel=[[[[1, -1], [0.5, 0]], [[-0.5, 0], [1, 2]]]],
    scalar=[[[[0.75]], [[0.25]]]],
)
G3 = [
    ('none', 0.7798717120, 1.7470355974, 253.32016162),
    ('shared', 0.5902885626, 1.3028356050, 188.91116272),
    ('channel', 0.6872280237, 1.4773418710, 214.21457129),
    ('scalar', 0.7798717120, 1.7470355974, 253.32016162),
]
# Example G4: two channels of 3x3, generator with prescribed weights.
G4_STUDENT = (ramp(18, 1, 2, 3, 3) % 4) / 2
G4_TEACHER = ((3 * ramp(18, 1, 2, 3, 3)) % 7) / 2
G4_NOISE = dict(
    shared=((5 * ramp(9, 1, 1, 3, 3)) % 9 - 4) / 4,
    channel=((7 * ramp(18, 1, 2, 3, 3)) % 11 - 5) / 5,
    scalar=[[[[0.75]], [[-0.5]]]],
)
G4 = [
    ('none', 0.4530804627, 0.5586654210, 2.23466168),
    ('shared', 0.4536934468, 0.5515832260, 2.20633290),
    ('channel', 0.3965533240, 0.4961426113, 1.98457045),
    ('scalar', 0.4524976081, 0.5580446150, 2.23217846),
]


def fill(loss: GDDLoss, kind: str) -> None:
    first, second = loss.generator[0], loss.generator[2]
    with torch.no_grad():
        if kind == 'delta':
            for conv in (first, second):
                nn.init.dirac_(conv.weight)
                conv.bias.zero_()
        else:
            first.weight.copy_((ramp(36, 2, 2, 3, 3) % 5 - 2) / 10)
            first.bias.copy_(torch.tensor([0.1, -0.1], dtype=torch.float64))
            second.weight.copy_((ramp(36, 2, 2, 3, 3) % 7 - 3) / 10)
            second.bias.copy_(torch.tensor([0, 0.05], dtype=torch.float64))


def inject(monkeypatch, noises: dict, mode: str) -> None:
    """Replaces the draw by a given tensor; the shape that is asked for must be that tensor's."""

    def randn(shape, **kwargs):
        noise = torch.as_tensor(noises[mode], dtype=torch.float64)
        assert tuple(shape) == tuple(noise.shape)
        assert kwargs['dtype'] == torch.float32
        return noise

    monkeypatch.setattr(torch, 'randn', randn)


def build(noise: str, temperature: float, kind: str) -> GDDLoss:
    loss = GDDLoss(temperature=temperature, noise=noise)
    loss.connect((1, 2, 3, 3), (1, 2, 3, 3))
    fill(loss.double(), kind)
    return loss


@pytest.mark.parametrize(('noise', 'at_1', 'at_4', 'weighted'), G3)
def test_pinned_g3(monkeypatch, noise, at_1, at_4, weighted):
    inject(monkeypatch, G3_NOISE, noise)
    value = build(noise, 1.0, 'delta')(G3_STUDENT, G3_TEACHER).item()
    assert value == pytest.approx(at_1, abs=1e-10)
    value = build(noise, 4.0, 'delta')(G3_STUDENT, G3_TEACHER).item()
    assert value == pytest.approx(at_4, abs=1e-10)
    assert 145 * value == pytest.approx(weighted, abs=1e-8)


@pytest.mark.parametrize(('noise', 'at_1', 'at_4', 'weighted'), G4)
def test_pinned_g4(monkeypatch, noise, at_1, at_4, weighted):
    inject(monkeypatch, G4_NOISE, noise)
    value = build(noise, 1.0, 'ramp')(G4_STUDENT, G4_TEACHER).item()
    assert value == pytest.approx(at_1, abs=1e-10)
    value = build(noise, 4.0, 'ramp')(G4_STUDENT, G4_TEACHER).item()
    assert value == pytest.approx(at_4, abs=1e-10)
    assert 4 * value == pytest.approx(weighted, abs=1e-8)


def test_defaults_are_those_of_the_paper():
    loss = GDDLoss()
    assert (loss.temperature, loss.noise, loss.noise_std) == (4.0, 'channel', 1.0)
    loss.connect((2, 8, 4, 4), (2, 8, 4, 4))
    first, relu, second = loss.generator
    for conv in (first, second):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        assert (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        assert conv.weight.shape == (8, 8, 3, 3)
    assert isinstance(relu, nn.ReLU)


@pytest.mark.parametrize(
    ('student', 'teacher', 'count'),
    [(256, 256, 1_180_160), (512, 2048, 75_501_568 + 1_050_624)],
)
def test_parameter_counts_of_the_official_configs(student, teacher, count):
    loss = GDDLoss()
    with torch.device('meta'):
        loss.connect((2, student, 4, 4), (2, teacher, 4, 4))
    assert sum(p.numel() for p in loss.parameters()) == count


def test_without_noise_and_generator_it_is_cwd():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 3, 4, 5, generator=g) for _ in 'st')
    loss = GDDLoss(noise='none', temperature=2.0)
    loss.connect(s.shape, t.shape)
    loss.generator = nn.Identity()
    torch.testing.assert_close(loss(s, t), CWDLoss(temperature=2.0)(s, t))
    assert loss(t, t).abs() < 1e-6
    assert loss(t + torch.randn(2, 3, 1, 1), t).abs() < 1e-5


def test_gradient_reaches_student_align_and_generator_but_not_the_teacher():
    s = torch.randn(2, 3, 4, 5, requires_grad=True)
    t = torch.randn(2, 6, 4, 5, requires_grad=True)
    loss = GDDLoss()
    loss(s, t).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0
    assert {name for name, _ in loss.named_parameters()} == {
        f'{module}.{kind}'
        for module in ('align', 'generator.0', 'generator.2')
        for kind in ('weight', 'bias')
    }
    for name, parameter in loss.named_parameters():
        if name == 'generator.2.bias':  # a constant per channel, to which the softmax is blind
            assert parameter.grad.abs().max() < 1e-6
        else:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('noise', NOISES)
def test_noise_is_fresh_in_every_call_and_repeats_with_the_seed(noise):
    s, t = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    loss = GDDLoss(noise=noise)
    loss.connect(s.shape, t.shape)
    torch.manual_seed(5)
    first, second = loss(s, t), loss(s, t)
    torch.manual_seed(5)
    assert torch.equal(loss(s, t), first)
    assert torch.equal(first, second) == (noise == 'none')


@pytest.mark.parametrize('noise', NOISES)
def test_noise_enters_between_align_and_generator(noise):
    s, t = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 8, 8)
    loss = GDDLoss(noise=noise, noise_std=0.5)
    loss.connect(s.shape, t.shape)
    seen = {}
    loss.align.register_forward_hook(lambda m, args, out: seen.update(aligned=out))
    loss.generator.register_forward_pre_hook(lambda m, args: seen.update(corrupted=args[0]))
    torch.manual_seed(1)
    loss(s, t)
    torch.manual_seed(1)
    torch.testing.assert_close(seen['corrupted'], F.add_noise(seen['aligned'], noise, 0.5))
    difference = (seen['corrupted'] - seen['aligned']).std(dim=1)
    assert (difference.max() < 1e-6) == (noise in ('shared', 'none'))


def test_limit_of_high_temperature():
    """At a high temperature it stays finite and becomes half the variance of the difference."""
    loss = build('none', 1e4, 'delta')
    assert loss(G3_STUDENT, G3_TEACHER).item() == pytest.approx(1.9375, rel=1e-3)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(noise='chanel'), "noise must be one of.*got 'chanel'; did you mean 'channel'"),
        (dict(noise_std=-0.1), 'noise_std must be a number of at least 0, got -0.1'),
        (dict(temperature=0), 'temperature must be a finite number above 0, got 0'),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GDDLoss(**kwargs)


def test_width_narrows_the_generator_only():
    torch.manual_seed(0)
    plain, narrow = GDDLoss(noise='none'), GDDLoss(noise='none', width=3)
    for loss in (plain, narrow):
        loss.connect((2, 4, 8, 8), (2, 16, 8, 8))
    first, _, second = narrow.generator
    assert (first.in_channels, first.out_channels, second.out_channels) == (16, 3, 16)
    counts = [sum(p.numel() for p in x.generator.parameters()) for x in (plain, narrow)]
    assert counts == [18 * 16 * c + c + 16 for c in (16, 3)]
    student = torch.randn(2, 4, 8, 8, requires_grad=True)
    value = narrow(student, torch.randn(2, 16, 8, 8))
    value.backward()
    assert value > 0 and student.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in narrow.parameters())


def test_the_teachers_width_is_the_default_to_the_bit():
    values = []
    for options in ({}, dict(width=None), dict(width=6)):
        torch.manual_seed(0)
        loss = GDDLoss(**options)
        values.append(loss(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8)).item())
    assert len(set(values)) == 1


@pytest.mark.parametrize('loss', [GDDLoss, MGDLoss])
@pytest.mark.parametrize('width', [0, -1, 2.5, '64', True])
def test_bad_width(loss, width):
    with pytest.raises(ValueError, match=r'width=.* must be a whole number, 1 or more'):
        loss(width=width)
