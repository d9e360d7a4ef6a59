"""The batch norms of a teacher run as part of its convolutions: same numbers, same model."""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import model_config
from mmcv.ops import RoIAlign
from mmengine.hooks import Hook
from torch import nn
from torch.nn.utils import parametrizations
from toys import TEACHER, hook_config, runner_config, toy_batch, toy_model, train

from mmkd_plugin import attach, detach
from mmkd_plugin.images.pixels import stated
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.taps import Recorder, TapPoint
from mmkd_plugin.teacher import Teacher, build_model
from mmkd_plugin.teacher.frozen_form import FrozenForm, agree
from mmkd_plugin.teacher.self_teacher import SelfTeacher

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
    Recorder(model, 'teacher').listen(points)
    form = FrozenForm(model, fold=True)
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
    form = FrozenForm(model, fold=True)
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


@pytest.mark.parametrize('hook', ['register_forward_hook', 'register_forward_pre_hook'])
def test_a_hook_that_comes_later_sees_the_convolution_and_not_the_pair(hook):
    model, x, seen = sequence(conv(), nn.BatchNorm2d(4)), torch.randn(1, 3, 8, 8), []
    form = found(model)
    module = model[0] if hook == 'register_forward_hook' else model[1]
    handle = getattr(module, hook)(lambda *told: seen.append(told[-1]))
    with torch.no_grad():
        plain = model(x)
        with form.applied():
            assert torch.equal(model(x), plain)
        one, other = (t[0] if isinstance(t, tuple) else t for t in seen)
        assert torch.equal(one, other)
        handle.remove()
        with form.applied():
            assert model[0].bias is not None and 'forward' in vars(model[1])


def test_a_norm_that_later_takes_its_batch_s_statistics_does():
    model, x = sequence(conv(), nn.BatchNorm2d(4, momentum=0.0)), torch.randn(2, 3, 8, 8)
    form = found(model)
    model[1].train()
    with torch.no_grad(), form.applied():
        out = model(x)
    assert torch.equal(out, model(x))


def test_a_smaller_number_of_outputs_is_no_agreement():
    assert not agree([torch.zeros(3, 2)], [torch.zeros(4, 2)])
    assert not agree([torch.zeros(1)], [torch.zeros(1)] * 2)


@pytest.mark.parametrize('channels_last', [True, False])
def test_signals_have_no_channels_last(channels_last):
    model = sequence(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    form, x = FrozenForm(model, fold=True), torch.randn(2, 3, 8)
    with torch.no_grad():
        form.find(lambda: model(x))
        form.channels_last = channels_last
        plain = model(x)
        with form.applied():
            assert form.images(x) is x
            torch.testing.assert_close(model(x), plain)
    assert form.folded == len(form) == 1


def test_another_dtype_is_folded_in_that_dtype():
    model, x = sequence(conv(), nn.BatchNorm2d(4)), torch.randn(2, 3, 8, 8)
    form = found(model)
    model.bfloat16()
    with torch.no_grad():
        plain = model(x.bfloat16())
        with form.applied():
            other = model(x.bfloat16())
    assert {t.dtype for t in form.held()} == {torch.bfloat16}
    assert agree([other], [plain])


def trained_once(model: nn.Module) -> None:
    with torch.enable_grad():
        model.requires_grad_(True)
        model(torch.ones(1, 3, 8, 8)).square().mean().backward()
        torch.optim.AdamW(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    'change',
    [
        trained_once,
        lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}),
        lambda model: model[1].running_mean.add_(1),
        lambda model: model[0].weight.requires_grad_(False).mul_(3),
        lambda model: model.double().float(),
    ],
    ids=['trained', 'loaded', 'statistics', 'in place', 'moved'],
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


def test_what_is_written_through_data_is_seen_after_renew():
    teacher = trained_statistics(toy_model(width=8))
    handle = connected(teacher, toy_model(), 'neck.convs.0', fold=True)
    images = toy_batch()[0]
    before = seen(handle, images)
    for parameter in teacher.parameters():
        parameter.data.mul_(1.5)
    handle.renew()
    now = seen(handle, images)
    assert agree(now, seen(handle, images, form=False)) and not agree(now, before)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(
        'mmkd_plugin.teacher.handle.print_log', lambda text, *_a, **_k: lines.append(text)
    )
    return lines


def test_a_pair_that_something_else_reads_is_noticed(said):
    teacher = toy_model(width=8)
    teacher.backbone.stem = nn.Sequential(Residual(), nn.Conv2d(4, 8, 1, 2))
    trained_statistics(teacher)
    handle = Teacher(teacher, inputs=INPUTS)
    attach(toy_model(width=4), handle, terms(), probe_size=(32, 32), student_inputs=INPUTS)
    assert any('they stay' in text for text in said)


def connected(teacher: nn.Module | Teacher, student: nn.Module, path: str, **form) -> Teacher:
    handle = teacher if isinstance(teacher, Teacher) else Teacher(teacher, inputs=INPUTS, **form)
    handle.connect(student, [TapPoint(path)], stated(INPUTS, 'inputs'))
    return handle


def seen(handle: Teacher, images: torch.Tensor, form: bool = True) -> list[torch.Tensor]:
    """What the taps see of the teacher, in its form or as it is."""
    kept, handle._form = handle._form, handle._form if form else None
    handle.run(images)
    handle._form = kept
    return [t.clone() for t in handle.recorder.seen()]


class Regions(nn.Module):
    """Pools a region of bright images only: of others nothing shows what RoIAlign makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = conv(), nn.BatchNorm2d(4), RoIAlign(2, 1.0)
        self.out = nn.Identity()

    def forward(self, x):
        maps = self.norm(self.conv(x))
        regions = torch.tensor([[0.0, 1, 2, 12, 14]])
        return self.out(self.pool(maps, regions) if x.mean() > 1 else maps)


@pytest.mark.parametrize('channels_last', [True, None])
def test_a_kernel_that_is_not_in_the_first_batch_gets_maps_in_the_usual_layout(channels_last, said):
    teacher = trained_statistics(Regions())
    handle = connected(teacher, toy_model(), 'out', fold=True, channels_last=channels_last)
    dark, bright = torch.zeros(2, 3, 16, 16), 2 + torch.rand(2, 3, 16, 16)
    seen(handle, dark)
    assert agree(seen(handle, bright), seen(handle, bright, form=False))
    assert handle._form.folded == 1 and not handle._form.channels_last
    assert any('channels-last' in line for line in said) is bool(channels_last)


def test_a_teacher_without_batch_norms_runs_as_it_is_and_says_so(said):
    teacher = toy_model(width=8, norm=False)
    handle = connected(teacher, toy_model(), 'neck.convs.0', fold=True, channels_last=False)
    images = toy_batch()[0]
    assert all(map(torch.equal, seen(handle, images), seen(handle, images, form=False)))
    assert [line for line in said if 'No batch norm' in line] == said and len(said) == 1


def test_the_student_of_an_epoch_ago_is_folded_anew_at_each_refresh():
    handle = SelfTeacher(trained_statistics(toy_model()))
    connected(handle, toy_model(), 'neck.convs.0')
    images, before = toy_batch()[0], None
    for epoch in range(3):
        handle.refresh(trained_statistics(toy_model(epoch)), epoch)
        now = seen(handle, images)
        assert agree(now, seen(handle, images, form=False))
        assert handle._form.folded == 2 and not (before and agree(now, before))
        before = now


class Losses(Hook):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(float(outputs['loss']))


@pytest.mark.parametrize('first, then', [(True, False), (False, True), (True, True)])
def test_a_run_resumes_in_either_form(first, then, tmp_path):
    def losses(folder: str, fold: bool, until: int, **changes) -> list[float]:
        teacher = dict(config=TEACHER, allow_random=True, fold=fold, channels_last=fold)
        config = runner_config(
            tmp_path / folder, hook_config(teacher=teacher), max_iters=until, **changes
        )
        watch = Losses()
        train(config, watch)
        return watch.seen

    whole = losses('whole', first, 6)
    parts = losses('parts', first, 2) + losses('parts', then, 6, resume=True)
    assert len(whole) == len(parts) == 6
    assert parts == (whole if first is then else pytest.approx(whole, rel=1e-5))


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
    form = FrozenForm(model, fold=True)
    with torch.no_grad():
        form.find(lambda: model.extract_feat(x))
        plain = model.extract_feat(x)
        with form.applied():
            other = model.extract_feat(x)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert form.folded >= len(norms) > 0
    assert agree(other, plain)
