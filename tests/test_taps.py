"""Taps: which modules a path names, and what is heard there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toys import toy_batch, toy_model

import mmkd_plugin
from mmkd_plugin.taps import Recorder, TapError, TapPoint, parse_tap, refuse_checkpointed


class Pyramid(nn.Module):
    """Three levels; their convolutions stand in another order than the alphabet's."""

    def __init__(self):
        super().__init__()
        self.zoom = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()) for _ in range(11))
        self.bend = nn.ModuleDict(dict(conv=nn.Conv2d(3, 4, 1)))
        self.shared = nn.Conv2d(4, 2, 1)
        self.idle = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        maps = [self.zoom[i](x[..., : 8 - 2 * i, : 8 - 2 * i]) for i in range(3)]
        return dict(maps=tuple(self.shared(m) for m in maps), extra=[maps[0], 'no tensor'])


class InPlace(nn.Module):
    """A convolution whose output the next activation overwrites."""

    def __init__(self, inplace: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU(inplace=inplace)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.act(self.conv(x)))


def paths(tap, model=None) -> list[str]:
    return [p.path for p in parse_tap(tap, model or Pyramid(), 'terms[0].student')]


def listen(model, *taps):
    """A recorder of `taps`, and the points of each of them."""
    recorder = Recorder(model, 'student')
    points = [parse_tap(tap, model, 'tap') for tap in taps]
    for some in points:
        recorder.listen(some)
    return recorder, points


def hear(model, *taps, x=None):
    """Captures of each tap in one forward, and the model's output."""
    recorder, points = listen(model, *taps)
    recorder.arm()
    output = model(torch.randn(1, 3, 8, 8) if x is None else x)
    recorder.disarm()
    captures = [recorder.read(some) for some in points]
    recorder.close()
    return captures, output


# -- which modules -----------------------------------------------------------------------------


def test_a_star_is_one_segment_and_keeps_the_model_s_order():
    # the order of registration: 2 before 10, though '10' sorts before '2'
    assert paths('zoom.*.0') == [f'zoom.{i}.0' for i in range(11)]
    assert paths('zoom.*') == [f'zoom.{i}' for i in range(11)]
    assert paths('*') == ['zoom', 'bend', 'shared', 'idle']


def test_two_stars_are_any_number_of_segments():
    assert paths('**.conv') == ['bend.conv']
    assert paths('zoom.**.1')[:4] == ['zoom.0.1', 'zoom.1', 'zoom.1.1', 'zoom.2.1']
    assert len(paths('zoom.**.1')) == 12
    # at the end: the innermost modules, not a module and all of its insides
    assert paths('bend.**') == ['bend.conv']
    assert paths('zoom.0.**') == ['zoom.0.0', 'zoom.0.1']


def test_characters_can_be_chosen_within_a_segment():
    assert paths('zoom.[02].0') == ['zoom.0.0', 'zoom.2.0']
    assert paths('sh*') == ['shared']


def test_a_list_keeps_the_written_order():
    tap = ['shared', dict(path='zoom.*.1', levels=[0], calls=[-1]), 'bend.conv']
    points = parse_tap(tap, Pyramid(), 'tap')
    assert [p.path for p in points] == ['shared', *(f'zoom.{i}.1' for i in range(11)), 'bend.conv']
    assert points[1] == TapPoint('zoom.0.1', 'output', (0,), (-1,))


@pytest.mark.parametrize(
    'tap, wrong, near',
    [
        ('sharde', 'sharde', "nearest: 'shared'"),
        ('zoom.0.O', 'zoom.0.O', "'zoom.0.0'"),
        ('zom.*.0', 'zom.*.0', "'zoom.9.0'"),
        ('bend.cnov', 'bend.cnov', "nearest: 'bend.conv'"),
        ('zoom.*.conv', 'zoom.*.conv', "'zoom."),
    ],
)
def test_an_unknown_path_names_the_nearest(tap, wrong, near):
    with pytest.raises(TapError) as error:
        parse_tap(tap, Pyramid(), "terms[3] ('gdd').student")
    message = str(error.value)
    assert "terms[3] ('gdd').student" in message and repr(wrong) in message
    assert near in message and 'Pyramid' in message and 'inspect_model' in message


def test_the_nearest_path_of_a_detector_is_the_one_that_was_meant():
    with pytest.raises(TapError, match=r"matches 'neck.conv.\*'; nearest: 'neck.convs"):
        parse_tap('neck.conv.*', toy_model(), 'tap')


@pytest.mark.parametrize(
    'tap, words',
    [
        (dict(path='shared', level=[0]), ["'level'", "nearest: 'levels'"]),
        (dict(source='output'), ["'path'"]),
        (dict(path='shared', source='ouput'), ["'ouput'", "'output'", "'input'"]),
        (dict(path='shared', levels=0), ['levels=0', 'list']),
        (dict(path='shared', calls='first'), ["calls='first'", 'list']),
        (dict(path='shared', levels=[]), ['levels=[]', 'list']),
        ([], ['[]']),
        (7, ['7']),
        (None, ['None']),
    ],
)
def test_a_malformed_tap_is_explained(tap, words):
    with pytest.raises(ValueError) as error:
        parse_tap(tap, Pyramid(), 'terms[0].student')
    assert all(word in str(error.value) for word in ['terms[0].student', *words])


# -- what is heard -----------------------------------------------------------------------------


def test_a_shared_convolution_gives_its_calls_as_levels():
    ((captures,), _) = hear(Pyramid(), 'shared')
    assert [tuple(c.tensor.shape[2:]) for c in captures] == [(8, 8), (6, 6), (4, 4)]
    assert [c.label for c in captures] == ['shared call 0', 'shared call 1', 'shared call 2']


def test_calls_and_levels_select_and_order():
    captures, _ = hear(
        Pyramid(),
        dict(path='shared', calls=[-1, 0]),
        dict(path='shared', calls=[1], source='input'),
    )
    assert [c.tensor.shape[2] for c in captures[0]] == [4, 8]
    assert tuple(captures[1][0].tensor.shape) == (1, 4, 6, 6)


def test_a_tuple_output_gives_a_level_per_tensor():
    model = nn.ModuleDict(dict(inner=Pyramid()))
    model.forward = lambda x: model['inner'](x)
    captures, output = hear(model, 'inner', dict(path='inner', levels=[-1, 1]))
    shapes = [tuple(c.tensor.shape[1:3]) for c in captures[0]]
    assert shapes == [(2, 8), (2, 6), (2, 4), (4, 8)]  # nested dicts, tuples and lists, in order
    assert captures[0][2].label == 'inner level 2'
    assert [c.tensor for c in captures[1]] == [output['extra'][0], output['maps'][1]]


def test_several_modules_are_levels_in_the_written_order():
    (captures,), _ = hear(Pyramid(), ['zoom.2', 'zoom.0', 'zoom.1'])
    assert [c.tensor.shape[2] for c in captures] == [4, 8, 6]


def test_input_taps_hear_positional_and_keyword_arguments():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(input=x)

    x = torch.randn(1, 3, 8, 8)
    (captures,), _ = hear(Outer(), dict(path='conv', source='input'), x=x)
    assert captures[0].tensor is x


def test_input_and_output_of_one_module_are_apart():
    (inputs, outputs), _ = hear(Pyramid(), dict(path='shared', source='input'), 'shared')
    assert [c.tensor.shape[1] for c in inputs] == [4, 4, 4]
    assert [c.tensor.shape[1] for c in outputs] == [2, 2, 2]


def test_captures_are_references():
    (captures,), output = hear(Pyramid(), 'shared')
    for capture, returned in zip(captures, output['maps']):
        assert capture.tensor.data_ptr() == returned.data_ptr()
        assert capture.tensor is returned


def test_only_what_is_tapped_is_kept():
    """An output tap must not hold the module's inputs, or a teacher's memory would double."""
    model = Pyramid()
    recorder, _ = listen(model, 'shared')
    seen = []
    model.shared.register_forward_pre_hook(lambda m, args: seen.append(args[0].data_ptr()))
    recorder.arm()
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 8))
    kept = [
        t.data_ptr()
        for listener in recorder._listeners.values()
        for call in listener.calls
        for t in call
    ]
    assert len(seen) == len(kept) == 3 and not set(seen) & set(kept)


def test_only_armed_forwards_are_heard_and_clear_forgets():
    model = Pyramid()
    recorder, (points,) = listen(model, 'shared')
    x = torch.randn(1, 3, 8, 8)
    model(x)
    with pytest.raises(TapError, match='captured nothing'):
        recorder.read(points)
    recorder.arm()
    model(x)
    recorder.disarm()
    model(x)
    assert recorder.calls('shared') == 3
    recorder.arm()  # a new step forgets the last one
    model(x)
    assert recorder.calls('shared') == len(recorder.read(points)) == 3
    recorder.clear()
    assert recorder.calls('shared') == 0


def test_a_module_that_is_never_called_is_an_error():
    with pytest.raises(TapError, match="student tap 'idle' captured nothing.*never called"):
        hear(Pyramid(), 'idle')


def test_a_module_without_tensors_is_an_error():
    class Names(nn.Module):
        def forward(self, x):
            return 'a name'

    model = nn.Sequential(Names())
    model.forward = lambda x: model[0](x)
    with pytest.raises(TapError, match="'0' saw no tensor in the output"):
        hear(model, '0')


@pytest.mark.parametrize('key', ['calls', 'levels'])
def test_a_call_or_level_that_does_not_exist_is_an_error(key):
    tap = dict(path='shared', **{key: [3]})
    count = dict(calls=3, levels=1)[key]
    with pytest.raises(TapError, match=rf"'shared' has {key}=\[3\], but this step gave {count}"):
        hear(Pyramid(), tap)


def test_close_leaves_the_model_as_it_was():
    model = Pyramid()
    recorder, _ = listen(model, 'shared', dict(path='zoom.0', source='input'))
    assert model.shared._forward_hooks and model.zoom[0]._forward_pre_hooks
    recorder.close()
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._forward_hooks_with_kwargs


# -- overwritten outputs -----------------------------------------------------------------------


def models() -> tuple[InPlace, InPlace]:
    torch.manual_seed(0)
    model = InPlace(inplace=True)
    other = InPlace(inplace=False)
    other.load_state_dict(model.state_dict())
    return model, other


@pytest.mark.parametrize('tap', ['conv', dict(path='act', source='input')])
def test_an_overwritten_capture_is_found_and_cloned(tap):
    model, reference = models()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    (wanted,), expected = hear(reference, tap, x=x)

    recorder, (points,) = listen(model, tap)
    recorder.arm()
    model(x)
    assert recorder.overwritten() == [points[0].path]
    assert not torch.equal(recorder.read(points)[0].tensor, wanted[0].tensor)

    recorder.protect(recorder.overwritten())
    recorder.arm()
    output = model(x)
    assert recorder.overwritten() == []
    captured = recorder.read(points)[0].tensor
    assert torch.equal(captured, wanted[0].tensor) and torch.equal(output, expected)

    # and the gradient through the clone is the one of the out-of-place model
    grads = torch.autograd.grad(captured.square().sum() + output.sum(), list(model.parameters()))
    others = torch.autograd.grad(
        wanted[0].tensor.square().sum() + expected.sum(), list(reference.parameters())
    )
    assert all(torch.equal(a, b) for a, b in zip(grads, others))


def test_what_nobody_overwrites_is_not_cloned():
    model, _ = models()
    recorder, (points, others) = listen(model, 'conv', 'last')
    recorder.arm()
    model(torch.randn(1, 3, 8, 8))
    assert recorder.overwritten() == ['conv']
    recorder.protect(['conv'])
    recorder.arm()
    output = model(torch.randn(1, 3, 8, 8))
    assert recorder.read(others)[0].tensor is output


def test_attach_protects_an_overwritten_tap():
    """`stage.1` of the toy backbone is followed by an in-place ReLU; both sides are protected."""
    losses = []
    for inplace in (True, False):
        student, teacher = toy_model(0), toy_model(1)
        for model in (student, teacher):
            model.backbone.stage[2].inplace = inplace
        distiller = mmkd_plugin.attach(
            student,
            teacher,
            [dict(loss=dict(type='PKDLoss'), student='backbone.stage.1')],
            probe_size=(16, 16),
        )
        student.train()
        losses.append(student(*toy_batch(), mode='loss')['loss_pkd'].item())
        found = {
            listener.path: listener.clone for listener in distiller.recorder._listeners.values()
        }
        assert found == {'backbone.stage.1': inplace}
    assert losses[0] == losses[1] > 0


# -- activation checkpointing and copies -------------------------------------------------------


class Block(nn.Module):
    def __init__(self, with_cp: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.with_cp = with_cp

    def forward(self, x):
        return self.conv(x)


class Blocks(nn.Module):
    """Like a ResNet: the backbone holds `with_cp` as well, but only its blocks act on it."""

    def __init__(self, with_cp: bool):
        super().__init__()
        self.layer = nn.Sequential(Block(with_cp), Block(with_cp))
        self.with_cp = with_cp


@pytest.mark.parametrize(
    'path, with_cp, wrapped, inside',
    [
        ('body.layer.0.conv', True, [], 'body.layer.0'),
        ('body.layer.0', True, [], None),
        ('body.layer', True, [], None),
        ('body.layer.0.conv', False, [], None),
        ('body.layer.0.conv', False, ['body.layer'], 'body.layer'),
        ('body.layer', False, ['body.layer'], None),
        ('body.layer.0', False, ['body.lay'], None),
    ],
)
def test_a_tap_inside_a_checkpointed_module_is_refused(path, with_cp, wrapped, inside):
    model = nn.ModuleDict(dict(body=Blocks(with_cp)))
    if inside is None:
        refuse_checkpointed(model, path, wrapped, 'terms[0]')
        return
    with pytest.raises(TapError) as error:
        refuse_checkpointed(model, path, wrapped, 'terms[0]')
    message = str(error.value)
    assert 'terms[0]' in message and repr(path) in message
    assert f'inside {inside!r}' in message and f'Tap {inside!r} itself' in message


def test_a_deep_copy_has_listeners_of_its_own():
    model = Pyramid()
    recorder, (points,) = listen(model, 'shared')
    other, other_recorder = copy.deepcopy((model, recorder))
    other_recorder.arm()
    x = torch.randn(1, 3, 8, 8)
    model(x)
    assert other_recorder.calls('shared') == 0
    output = other(x)
    assert other_recorder.read(points)[0].tensor is output['maps'][0]
    assert recorder.calls('shared') == 0
    other_recorder.close()
    assert not other.shared._forward_hooks and model.shared._forward_hooks
