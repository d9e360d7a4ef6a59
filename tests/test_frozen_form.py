"""The batch norms of a teacher run as part of its convolutions: same numbers, same model."""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import model_config
from torch import nn
from torch.nn.utils import parametrizations
from toys import toy_batch, toy_model

from mmkd_plugin import attach, detach
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.taps import TapPoint
from mmkd_plugin.teacher import Teacher, build_model
from mmkd_plugin.teacher.frozen_form import FrozenForm, agree

INPUTS = dict(mean=[0.0] * 3, std=[1.0] * 3, range=1, order='rgb')


def trained_statistics(model: nn.Module) -> nn.Module:
    """Norms as after some training: none is the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def conv(width: int = 4, **changes) -> nn.Conv2d:
    return nn.Conv2d(3 if width == 4 else 4, width, 3, padding=1, **changes)


def sequence(*modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return trained_statistics(nn.Sequential(*modules))


def found(model: nn.Module, *points: TapPoint) -> FrozenForm:
    form = FrozenForm(model, points, fold=True)
    with torch.no_grad():
        form.find(lambda: model(torch.randn(2, 3, 8, 8)))
    return form


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


class Residual(nn.Module):
    """Adds the norm's input to its output, so that a folded pair would say something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class SharedConv(nn.Module):
    """One convolution for two levels, each of which has a norm of its own, as in RTMDet's head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = conv(), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x):
        return sum(norm(self.conv(x)) for norm in self.norms)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize(
    'dtype, tolerance', [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 2e-2)]
)
def test_the_form_gives_the_same_numbers(bias, affine, channels_last, dtype, tolerance):
    model = sequence(
        conv(bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU(inplace=True), conv(5), nn.ReLU()
    ).to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    form = FrozenForm(model, (), fold=True)
    with torch.no_grad():
        form.find(lambda: model(x))
        form.channels_last = channels_last
        plain = model(x)
        with form.applied():
            other = model(form.images(x))
            assert model[0].weight.is_contiguous() is not channels_last
    assert form.folded == 1 and len(form) == (2 if channels_last else 1)
    assert model[0].weight.is_contiguous() and plain.is_contiguous()
    assert float((other - plain).norm() / plain.norm()) <= tolerance
    assert agree([other], [plain])


def test_the_model_is_untouched_between_its_forwards():
    model = sequence(conv(), nn.BatchNorm2d(4))
    before, x = copy.deepcopy(model.state_dict()), torch.randn(1, 3, 8, 8)
    plain, parameters = model(x), list(model.parameters())
    form = found(model)
    with pytest.raises(KeyError), form.applied():
        assert model[0].bias is not parameters[1]
        raise KeyError
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(
    'modules',
    [
        (conv(), nn.GroupNorm(2, 4)),
        (conv(), nn.InstanceNorm2d(4)),
        (conv(), nn.BatchNorm2d(4, track_running_stats=False)),
        (conv(), nn.ReLU(), nn.BatchNorm2d(4)),
        (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
        (StandardizedConv(3, 4, 3), nn.BatchNorm2d(4)),
        (parametrizations.weight_norm(conv()), nn.BatchNorm2d(4)),
        (SharedConv(),),
    ],
    ids=lambda modules: '-'.join(type(m).__name__ for m in modules),
)
def test_what_is_no_convolution_and_batch_norm_is_left_alone(modules):
    assert len(found(sequence(*modules))) == 0


def test_a_norm_of_the_batch_is_left_alone():
    model = sequence(conv(), nn.BatchNorm2d(4))
    model[1].train()
    assert len(found(model)) == 0


@pytest.mark.parametrize(
    'path, source, pairs', [('0', 'output', 0), ('1', 'input', 0), ('1', 'output', 1)]
)
def test_a_tap_within_a_pair_keeps_it(path, source, pairs):
    model = sequence(conv(), nn.BatchNorm2d(4))
    assert len(found(model, TapPoint(path, source=source))) == pairs


def test_a_hook_of_somebody_else_within_a_pair_keeps_it():
    model, seen = sequence(conv(), nn.BatchNorm2d(4)), []
    model[0].register_forward_hook(lambda _m, _a, output: seen.append(output))
    assert len(found(model)) == 0


@pytest.mark.parametrize(
    'change',
    [
        lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}),
        lambda model: model[1].running_mean.add_(1),
        lambda model: model[0].weight.requires_grad_(False).mul_(3),
        lambda model: model.double().float(),
    ],
    ids=['loaded', 'statistics', 'in place', 'moved'],
)
def test_weights_that_change_are_folded_anew(change):
    model = sequence(conv(), nn.BatchNorm2d(4))
    form, x = found(model), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        with form.applied():
            first = model(x)
        change(model)
        plain = model(x)
        with form.applied():
            other = model(x)
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(first, plain) or not torch.allclose(first, plain)


# -- a teacher -----------------------------------------------------------------------------------


def terms() -> list[dict]:
    return [dict(loss=dict(type='CWDLoss'), student='neck.convs.*')]


def trained(teacher: nn.Module, steps: int = 20, **form) -> list[float]:
    """The losses of a student that learns from this teacher."""
    torch.manual_seed(0)
    student = toy_model().train()
    handle = Teacher(copy.deepcopy(teacher), inputs=INPUTS, **form)
    attach(student, handle, terms(), probe_size=(32, 32), student_inputs=INPUTS)
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=0.05), []
    for step in range(steps):
        torch.manual_seed(step)
        found = student(*toy_batch(size=32), mode='loss')
        total, _ = student.parse_losses(found)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert (handle._form.folded > 0) is form['fold']
    detach(student)
    return losses


def test_a_student_learns_the_same():
    teacher = trained_statistics(toy_model(width=8))
    plain = trained(teacher, fold=False, channels_last=False)
    assert plain[-1] < plain[0]
    for channels_last in (True, False, None):
        other = trained(teacher, fold=True, channels_last=channels_last)
        assert other == pytest.approx(plain, rel=1e-5)


def test_a_pair_that_something_else_reads_is_noticed(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmkd_plugin.teacher.handle.print_log', lambda text, *_a, **_k: said.append(text)
    )
    teacher = toy_model(width=8)
    teacher.backbone.stem = nn.Sequential(Residual(), nn.Conv2d(4, 8, 1, 2))
    trained_statistics(teacher)
    handle = Teacher(teacher, inputs=INPUTS)
    attach(toy_model(width=4), handle, terms(), probe_size=(32, 32), student_inputs=INPUTS)
    assert any('they stay' in text for text in said)


@pytest.mark.parametrize('key', ['fold', 'channels_last'])
def test_they_are_switches(key):
    with pytest.raises(ValueError, match=rf"teacher\.{key}='yes'"):
        Teacher(toy_model(), **{key: 'yes'})


@pytest.mark.parametrize('name', ['GFL', 'Faster R-CNN', 'RTMDet'])
def test_detectors_say_the_same(name):
    torch.manual_seed(0)
    model = trained_statistics(
        build_model(load_model_config(dict(model=model_config(name), default_scope='mmdet')))
    )
    x = torch.randn(1, 3, 64, 64)
    form = FrozenForm(model, (), fold=True)
    with torch.no_grad():
        form.find(lambda: model.extract_feat(x))
        plain = model.extract_feat(x)
        with form.applied():
            other = model.extract_feat(x)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert form.folded >= len(norms) > 0
    assert agree(other, plain)
