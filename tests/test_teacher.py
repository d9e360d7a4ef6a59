"""The teacher: read from anywhere a config can be, loaded safely and completely, then frozen."""

from __future__ import annotations

import argparse
import builtins
import copy
import http.server
import io
import logging
import math
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from detectors import model_config
from mmdet.models import DeformableDETR
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import save_checkpoint
from torch import nn
from toys import toy_batch, toy_model

from mmkd_plugin.checkpoints.fit import load_all, state_dict_of
from mmkd_plugin.checkpoints.load import load_file
from mmkd_plugin.errors import CheckpointError
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import Teacher, build_model, make_teacher
from mmkd_plugin.teacher import handle as teacher_module

GFL = Path(__file__).resolve().parents[1] / 'configs' / 'demo' / 'gfl_r18-quarter_digits.py'
TOY = dict(type='ToyDetector')
CLASSES = ('dark', 'grey', 'bright')


@pytest.fixture
def saved(tmp_path) -> Path:
    """A plain checkpoint of a toy detector, as mmengine names its entries."""
    path = tmp_path / 'teacher.pth'
    save(path, toy_model(1).state_dict())
    return path


def save(path: Path, state: dict, classes=CLASSES) -> Path:
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes))), path)
    return path


def build(checkpoint, config=TOY, **kwargs) -> Teacher:
    return make_teacher(dict(config=config, checkpoint=str(checkpoint), **kwargs))


def refused(checkpoint, *words, config=TOY, error=CheckpointError, **kwargs) -> None:
    """Building the teacher fails with a message that holds all `words`."""
    with pytest.raises(error) as caught:
        build(checkpoint, config, **kwargs)
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


# -- config ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'config',
    [str(GFL), GFL, Config.fromfile(GFL), Config.fromfile(GFL).to_dict()],
    ids=['path', 'Path', 'Config', 'dict'],
)
def test_every_form_of_a_config_builds_the_same_model(config):
    teacher = make_teacher(dict(config=config, allow_random=True, checkpoint=None))
    assert type(teacher.model).__name__ == 'GFL'
    assert teacher.model.neck.out_channels == 32 and teacher.model.bbox_head.num_classes == 10


def test_a_packaged_config_and_a_bare_model_dict(monkeypatch):
    config = load_model_config('mmdet::gfl/gfl_r50_fpn_1x_coco.py')
    assert config.model.type == 'GFL' and config.default_scope == 'mmdet'
    bare = load_model_config(dict(TOY, width=5))
    assert build_model(bare).backbone.stem[0].out_channels == 5


def test_a_bare_model_dict_of_mmdet_builds_in_the_current_scope():
    model = Config.fromfile(GFL).model.to_dict()
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(build_model(load_model_config(model))).__name__ == 'GFL'


def test_reading_and_building_leave_the_config_scope_and_random_state_alone():
    config = Config.fromfile(GFL)
    before, scope = config.to_dict(), DefaultScope.get_current_instance()
    state = torch.get_rng_state()
    make_teacher(dict(config=config, checkpoint=None, allow_random=True))
    assert config.to_dict() == before
    assert DefaultScope.get_current_instance() is scope
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    'config, error, words',
    [
        ('{folder}/gfl_r18_digit.py', FileNotFoundError, ['gfl_r18_digit.py', 'gfl_r18_digits.py']),
        ('{folder}/nowhere/a.py', FileNotFoundError, ['nowhere/a.py', "'mmdet::"]),
        ('mmdet::gfl/gfl_r50_fpn_1x_coc.py', FileNotFoundError, ["'gfl/gfl_r50_fpn_1x_coco.py'"]),
        ('mmdit::gfl/a.py', FileNotFoundError, ["'mmdit'", 'not installed']),
        (dict(train_cfg=dict()), ValueError, ["'model'"]),
        (7, TypeError, ['int', '7', "'pkg::path'"]),
    ],
)
def test_a_wrong_config_is_explained(config, error, words):
    if isinstance(config, str):
        config = config.format(folder=GFL.parent)
    with pytest.raises(error) as caught:
        make_teacher(dict(config=config, checkpoint=None, allow_random=True))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    'entry, error, words',
    [
        (dict(config=TOY, chekpoint='a.pth'), ValueError, ["'chekpoint'", "'checkpoint'"]),
        (dict(checkpoint='a.pth'), ValueError, ["'config'"]),
        ('teacher.py', TypeError, ['str', 'config=']),
        (dict(config=TOY, checkpoint=None), ValueError, ['checkpoint', 'allow_random=True']),
        (dict(config=TOY), ValueError, ['checkpoint', 'allow_random=True']),
    ],
)
def test_a_wrong_teacher_entry_is_explained(entry, error, words):
    with pytest.raises(error) as caught:
        make_teacher(entry)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_random_weights_are_said_aloud(monkeypatch):
    lines = []
    monkeypatch.setattr(teacher_module, 'print_log', lambda *args: lines.append(args))
    teacher = make_teacher(dict(config=TOY, allow_random=True))
    assert 'RANDOM' in lines[0][0] and lines[0][2] == logging.WARNING
    assert teacher.identity['checkpoint'] is None


def test_random_weights_are_initialised_and_nothing_is_downloaded(monkeypatch):
    """Deformable DETR's level embeddings come uninitialised; a backbone has an address to load."""
    config = Config(dict(model=model_config('Deformable DETR'), default_scope='mmdet'))
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    layers = DeformableDETR._init_layers

    def as_memory_may_be(self):
        layers(self)
        nn.init.constant_(self.level_embed, math.nan)

    monkeypatch.setattr(DeformableDETR, '_init_layers', as_memory_may_be)
    state = torch.get_rng_state()
    teacher = make_teacher(dict(config=config, allow_random=True))
    assert all(value.isfinite().all() for value in teacher.model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), state)


# -- checkpoint files --------------------------------------------------------------------------


def test_a_good_checkpoint_fills_the_teacher(saved):
    teacher = build(saved)
    assert same_weights(teacher.model, toy_model(1))
    assert teacher.classes == CLASSES
    assert len(teacher.identity['checkpoint']) == len(teacher.identity['config']) == 64
    other = build(save(saved.with_name('b.pth'), toy_model(2).state_dict()))
    assert other.identity['checkpoint'] != teacher.identity['checkpoint']
    assert other.identity['config'] == teacher.identity['config']


def test_a_missing_file_lists_its_neighbours(saved, tmp_path):
    refused(
        tmp_path / 'teachr.pth',
        "teacher.checkpoint='",
        'teachr.pth',
        'does not exist',
        f'nearest: {str(saved)!r}',
    )
    empty = tmp_path / 'empty'
    empty.mkdir()
    refused(empty / 'a.pth', 'does not exist', 'is no *.pth file')
    refused(empty / 'no' / 'a.pth', 'does not exist', 'There is no folder')
    refused(tmp_path, 'does not exist')  # a folder
    config = tmp_path / 'teacher.py'
    config.write_text("model = dict(type='ToyDetector')")
    with pytest.raises(CheckpointError, match=f'Train the teacher.*train.py {config}'):
        Teacher.build(str(config), 'work_dirs/teacher/epoch_80.pth')


@pytest.mark.parametrize('trust', [False, True])
@pytest.mark.parametrize('keep', [0, 3, 1000, 0.5, 0.99])
def test_a_truncated_file(saved, keep, trust):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(
        saved,
        'teacher.pth',
        'truncated or not a PyTorch checkpoint',
        f'({saved.stat().st_size} bytes)',
        trust_checkpoint=trust,
    )


@pytest.mark.parametrize('trust', [False, True])
@pytest.mark.parametrize('text', [b'<html>Not found</html>', b'model = dict()\n', b'\x89PNG\r\n'])
def test_a_file_that_is_something_else(tmp_path, text, trust):
    path = tmp_path / 'teacher.pth'
    path.write_bytes(text)
    refused(path, 'teacher.pth', 'not a PyTorch checkpoint', trust_checkpoint=trust)


@pytest.mark.parametrize(
    'content, found',
    [
        (dict(optimizer=dict(), epoch=3), "'epoch'"),
        ([torch.zeros(2)], 'list'),
        (dict(state_dict=dict()), "'state_dict'"),
        ({1: 'a', 'b': 2}, "'b'"),
    ],
)
def test_a_torch_file_without_weights(tmp_path, content, found):
    path = tmp_path / 'teacher.pth'
    torch.save(content, path)
    refused(path, 'holds no weights', "'state_dict'", found)


class Bomb:
    """A pickle that runs code when it is read."""

    def __reduce__(self):
        return exec, ('import builtins; builtins.mmkd_bomb = True',)


@pytest.fixture
def fuse():
    yield
    if hasattr(builtins, 'mmkd_bomb'):
        del builtins.mmkd_bomb


@pytest.mark.usefixtures('fuse')
def test_code_in_a_checkpoint_is_refused_unless_trusted(tmp_path):
    path = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=toy_model(1).state_dict(), extra=Bomb()), path)
    with pytest.raises(CheckpointError) as caught:
        build(path)
    for word in ('teacher.pth', 'builtins.exec', 'run code', 'made to do harm'):
        assert word in str(caught.value)
    assert 'trust' not in str(caught.value)
    assert not hasattr(builtins, 'mmkd_bomb')
    teacher = build(path, trust_checkpoint=True)
    assert builtins.mmkd_bomb and same_weights(teacher.model, toy_model(1))


def test_a_harmless_object_may_be_trusted(tmp_path):
    path = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=toy_model(1).state_dict(), args=argparse.Namespace(lr=1)), path)
    refused(path, 'argparse.Namespace', 'run code', 'trust_checkpoint=True')
    assert same_weights(build(path, trust_checkpoint=True).model, toy_model(1))
    for flag in ('no', 1, [], None):
        for key in ('trust_checkpoint', 'allow_partial', 'allow_random', 'allow_class_mismatch'):
            refused(
                path, f'teacher.{key}={flag!r}', 'True or False', error=ValueError, **{key: flag}
            )


@pytest.mark.usefixtures('fuse')
def test_getattr_opens_no_way_out(tmp_path):
    """HistoryBuffer pickles name their methods by ``getattr``; the real one leads to builtins."""

    def text(value: str) -> bytes:
        return b'X' + len(value).to_bytes(4, 'little') + value.encode()

    def attribute(of: bytes, name: str) -> bytes:
        return b'cbuiltins\ngetattr\n' + of + text(name) + b'\x86R'

    space = attribute(attribute(b'cbuiltins\ngetattr\n', '__self__'), '__dict__')
    program = b'\x80\x02' + space + text('mmkd_bomb') + b'K\x01s.'  # builtins.mmkd_bomb = 1
    plain, path = io.BytesIO(), tmp_path / 'teacher.pth'
    torch.save(dict(), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, 'w') as target:
        for item in source.infolist():
            data = source.read(item.filename)
            target.writestr(item, program if item.filename.endswith('data.pkl') else data)
    refused(path, 'getattr', 'run code')
    assert not hasattr(builtins, 'mmkd_bomb')


def test_a_checkpoint_as_mmengine_saves_it_loads_safely(tmp_path):
    history = HistoryBuffer()
    for value in (3.0, 1.0, 2.0):
        history.update(value)
    path = tmp_path / 'epoch_1.pth'
    optimizer = torch.optim.AdamW(toy_model(1).parameters())
    save_checkpoint(
        dict(
            meta=dict(epoch=1, cfg='model = ...', dataset_meta=dict(classes=CLASSES)),
            state_dict=toy_model(1).state_dict(),
            optimizer=optimizer.state_dict(),
            message_hub=dict(log_scalars={'train/loss': history}, runtime_info=dict(epoch=1)),
            param_schedulers=[dict(last_step=3)],
        ),
        str(path),
    )
    read = load_file(path, 'teacher.checkpoint')['message_hub']['log_scalars']['train/loss']
    assert read.data[0].tolist() == [3.0, 1.0, 2.0] and read.min() == 1.0
    assert same_weights(build(path).model, toy_model(1))


# -- checkpoints that do not fit ---------------------------------------------------------------


def test_a_checkpoint_of_another_model(tmp_path):
    state = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).state_dict()
    path = save(tmp_path / 'other.pth', state)
    for partly in (False, True):  # allow_partial does not mean: nothing at all
        refused(
            path,
            'other.pth',
            'another model',
            "'0.weight'",
            "'backbone.",
            config=TOY,
            allow_partial=partly,
        )
    # a wrapper's prefix is one such case, and the message says so
    wrapped = {f'architecture.{k}': v for k, v in toy_model(1).state_dict().items()}
    refused(save(path, wrapped), "'architecture.backbone.", 'prefix')


def test_a_checkpoint_of_another_detector_lists_what_is_missing(tmp_path):
    """Backbone and neck fit, the head does not: half a teacher is none."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        gfl = build_model(load_model_config(str(GFL)))
    state = {k: v for k, v in gfl.state_dict().items() if not k.startswith('bbox_head')}
    state['bbox_head.fovea_cls.weight'] = torch.zeros(1)
    path = save(tmp_path / 'fovea.pth', state)
    total = len([k for k in gfl.state_dict() if not k.endswith('num_batches_tracked')])
    missing = len([k for k in gfl.state_dict() if k.startswith('bbox_head')])
    refused(
        path,
        f'lacks {missing} of {total} entries',
        'bbox_head.',
        'allow_partial=True',
        config=str(GFL),
    )


def test_other_classes_than_the_config_s(tmp_path):
    path = save(tmp_path / 'five.pth', toy_model(1, classes=5).state_dict())
    refused(
        path,
        'bbox_head.cls.weight is (5, 6, 1, 1) in the file, (3, 6, 1, 1) in the model',
        'Number of classes',
    )


def test_missing_entries_stop_unless_allowed(tmp_path, monkeypatch):
    state = toy_model(1).state_dict()
    del state['neck.convs.1.bias'], state['backbone.stem.1.running_mean']  # a buffer counts, too
    path = save(tmp_path / 'part.pth', state)
    refused(
        path,
        'lacks 2 of',
        'neck.convs.1.bias',
        'backbone.stem.1.running_mean',
        'allow_partial=True',
    )

    lines = []
    monkeypatch.setattr('mmkd_plugin.checkpoints.fit.print_log', lambda *args: lines.append(args))
    teacher = build(path, allow_partial=True)
    assert 'neck.convs.1.bias' in lines[0][0] and lines[0][2] == logging.WARNING
    assert torch.equal(teacher.model.neck.convs[0].bias, toy_model(1).neck.convs[0].bias)


def test_misshapen_entries_are_skipped_when_allowed(tmp_path):
    path = save(tmp_path / 'five.pth', toy_model(1, classes=5).state_dict())
    teacher = build(path, allow_partial=True)
    assert teacher.model.bbox_head.cls.weight.shape[0] == 3
    assert torch.equal(teacher.model.neck.convs[0].bias, toy_model(1).neck.convs[0].bias)


def test_a_deeper_network_s_file_is_refused(tmp_path):
    """Every entry of the shallow network is in it, and still it is another network's."""
    state = toy_model(1).state_dict()
    deeper = dict(state, **{'backbone.stage.3.weight': torch.zeros(2)})
    path = save(tmp_path / 'deep.pth', deeper)
    refused(path, 'deep.pth', '1 entries that the teacher lacks', 'backbone.stage.3.weight')
    assert same_weights(build(path, allow_partial=True).model, toy_model(1))
    # but parts that a training script added beside the model do no harm (YOLOX: ema_...)
    extra = dict(state, ema_backbone_stem_weight=torch.zeros(2))
    assert same_weights(build(save(path, extra)).model, toy_model(1))


@pytest.mark.parametrize('key', ['state_dict', 'model', None])
def test_the_prefix_of_ddp_and_the_places_of_weights(tmp_path, key):
    state = {f'module.{k}': v for k, v in toy_model(1).state_dict().items()}
    path = tmp_path / 'ddp.pth'
    torch.save({key: state} if key else state, path)
    assert same_weights(build(path).model, toy_model(1))


class Renamed(nn.Module):
    """Reads what it was called before version 2, which its parent's prefix does not hold.

    So do mmcv's deformable convolutions: `conv2_offset.weight` became `conv2.offset.weight`.
    """

    _version = 2

    def __init__(self):
        super().__init__()
        self.offset = nn.Linear(2, 2, bias=False)

    def _load_from_state_dict(self, state, prefix, metadata, *args):
        if metadata.get('version') is None or metadata['version'] < 2:
            state[f'{prefix}offset.weight'] = state.pop(f'{prefix[:-1]}_offset.weight')
        super()._load_from_state_dict(state, prefix, metadata, *args)


def test_modules_convert_the_names_of_their_older_versions():
    model = nn.ModuleDict(dict(conv2=Renamed(), last=nn.Linear(2, 2)))
    saved = copy.deepcopy(model)
    nn.init.constant_(model['conv2'].offset.weight, 7.0)
    old = dict(saved.state_dict())  # a plain dict: from before versions were stored
    old['conv2_offset.weight'] = old.pop('conv2.offset.weight')
    load_all(model, state_dict_of(old, 'key'), 'old.pth', allow_partial=False)
    assert same_weights(model, saved)
    # a file of the present version says so, and nothing is converted
    nn.init.constant_(model['conv2'].offset.weight, 7.0)
    load_all(model, state_dict_of(saved.state_dict(), 'key'), 'new.pth', allow_partial=False)
    assert same_weights(model, saved)


@pytest.mark.parametrize(
    'classes, words',
    [
        (('grey', 'dark', 'bright'), ['another order', 'index 0', "'grey'", "'dark'"]),
        (('dark', 'grey', 'glossy'), ['index 2', "'glossy'", "'bright'"]),
        (('dark', 'grey'), ['2 classes', 'has 3', 'index 2', 'teacher nothing']),
    ],
)
def test_class_names_are_compared(tmp_path, monkeypatch, classes, words):
    entry = dict(
        config=TOY, checkpoint=str(save(tmp_path / 't.pth', toy_model(1).state_dict(), classes))
    )
    teacher = make_teacher(entry, CLASSES)  # features need no classes
    with pytest.raises(ValueError) as caught:
        teacher.refuse_other_classes("terms[0] ('kd')")
    for word in [*words, 'allow_class_mismatch=True', "class_map='names'"]:
        assert word in str(caught.value), str(caught.value)

    lines = []
    monkeypatch.setattr(teacher_module, 'print_log', lambda *args: lines.append(args))
    make_teacher(dict(entry, allow_class_mismatch=True), CLASSES).refuse_other_classes('kd')
    assert words[-1] in lines[0][0] and lines[0][2] == logging.WARNING
    make_teacher(entry, classes).refuse_other_classes('kd')  # equal names
    make_teacher(entry, None).refuse_other_classes('kd')  # nobody knows the student's


def changed(name: str, value) -> dict:
    return dict(toy_model(1).state_dict(), **{name: value})


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda w: w.to_sparse(), ['a sparse tensor']),
        (lambda w: torch.empty_like(w, device='meta'), ['a meta tensor']),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), ['a quantized tensor']),
        (lambda w: w > 0, ['torch.bool in the file', 'torch.float32 in the model']),
        (lambda w: w.long(), ['torch.int64 in the file']),
        (lambda w: 7, ["'7' (int)", 'no tensor']),
        (lambda w: 'text', ["'text' (str)", 'no tensor']),
    ],
)
@pytest.mark.parametrize('trust', [False, True])
def test_an_entry_that_cannot_be_copied_is_named(tmp_path, make, words, trust):
    """It would leave the layer random."""
    name = 'backbone.stem.0.weight'
    path = save(tmp_path / 't.pth', changed(name, make(toy_model(1).state_dict()[name])))
    refused(path, name, *(words if not trust else []), trust_checkpoint=trust)


def test_half_precision_and_whole_numbers_for_whole_numbers_are_fine(tmp_path):
    state = {
        k: v.half() if v.is_floating_point() else v.int()
        for k, v in toy_model(1).state_dict().items()
    }
    teacher = build(save(tmp_path / 'half.pth', state))
    for key, value in toy_model(1).state_dict().items():
        torch.testing.assert_close(teacher.model.state_dict()[key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    'name, number, word',
    [
        ('backbone.stem.0.weight', math.nan, 'NaN'),
        ('backbone.stem.0.weight', math.inf, 'NaN or Inf'),
        ('backbone.stem.1.running_var', math.inf, 'NaN or Inf'),
        ('backbone.stem.1.running_mean', math.nan, 'NaN'),
        ('backbone.stem.1.running_var', -1.0, 'negative variance'),
    ],
)
def test_numbers_that_no_training_leaves_are_named(tmp_path, name, number, word):
    value = toy_model(1).state_dict()[name].clone()
    value.view(-1)[0] = number
    for partly in (False, True):
        path = save(tmp_path / 't.pth', changed(name, value))
        refused(path, name, word, 'diverged', allow_partial=partly)


def test_names_of_weights_are_text(tmp_path):
    refused(save(tmp_path / 't.pth', {1: torch.zeros(1)}), 'no text', '1')


# -- downloads ---------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server over a folder, and an empty torch cache: (folder, URL, requested paths)."""
    folder = tmp_path / 'web'
    folder.mkdir()
    requested = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            requested.append(self.path)
            super().do_GET()

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield folder, f'http://127.0.0.1:{running.server_address[1]}', requested
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_url_is_downloaded_once(server):
    folder, url, requested = server
    save(folder / 'epoch_1.pth', toy_model(1).state_dict())
    for _ in range(2):
        assert same_weights(build(f'{url}/epoch_1.pth').model, toy_model(1))
    assert requested == ['/epoch_1.pth']


def test_equal_file_names_at_different_addresses_are_different_files(server):
    folder, url, _ = server
    for name, seed in (('a', 1), ('b', 2)):
        (folder / name).mkdir()
        save(folder / name / 'epoch_1.pth', toy_model(seed).state_dict())
    assert same_weights(build(f'{url}/a/epoch_1.pth').model, toy_model(1))
    assert same_weights(build(f'{url}/b/epoch_1.pth').model, toy_model(2))


def test_a_failed_download_is_explained(server, tmp_path):
    folder, url, _ = server
    refused(f'{url}/epoch_1.pth', f"teacher.checkpoint='{url}/epoch_1.pth'", '404', 'by hand')
    # a published name holds the file's hash: half a file is not kept
    save(folder / 'gfl_r50_20200629-213222ab.pth', toy_model(1).state_dict())
    refused(f'{url}/gfl_r50_20200629-213222ab.pth', 'could not be downloaded', 'hash')
    assert not list((tmp_path / 'cache').rglob('*.pth'))


# -- the frozen network ------------------------------------------------------------------------


def test_it_is_frozen_and_in_eval():
    model = toy_model(1, dropout=0.5).train()
    teacher = Teacher(model)
    assert teacher.model is model  # in place
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())


def test_a_swin_teacher_is_deterministic():
    config = dict(
        type='SwinTransformer',
        embed_dims=8,
        depths=(2, 2, 2, 2),
        num_heads=(1, 1, 2, 2),
        window_size=4,
        drop_path_rate=0.9,
        drop_rate=0.5,
        attn_drop_rate=0.5,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        swin = MODELS.build(config)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    swin.train()
    assert not torch.equal(swin(image)[-1], swin(image)[-1]), 'the test would show nothing'
    model = Teacher(swin).model
    assert all(torch.equal(a, b) for a, b in zip(model(image), model(image)))


def test_copies_share_it():
    teacher = Teacher(toy_model(1))
    holder = dict(teacher=teacher, model=nn.Linear(1, 1))
    other = copy.deepcopy(holder)
    assert other['teacher'] is teacher and other['teacher'].model is teacher.model
    assert other['model'] is not holder['model']


def test_synchronised_norms_become_plain_ones():
    """SyncBatchNorm of an 8-GPU teacher config cannot run on a CPU."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(toy_model(1))
    teacher = Teacher(model)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in teacher.model.modules())
    assert same_weights(teacher.model, toy_model(1))


def test_make_teacher_passes_handles_and_modules():
    teacher = Teacher(toy_model(1))
    assert make_teacher(teacher) is teacher
    model = toy_model(2)
    assert make_teacher(model).model is model


def test_running_gives_tensors_a_loss_may_save():
    """no_grad, not inference_mode: a product of student and teacher tensors has a backward."""
    from mmkd_plugin.taps import TapPoint

    teacher = Teacher(toy_model(1))
    points = [TapPoint('neck.convs.0')]
    teacher.connect(toy_model(0), points)
    inputs, samples = toy_batch()
    values = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    teacher.run(inputs, samples)
    (capture,) = teacher.recorder.read(points)
    assert teacher.depth == 'neck' and not capture.tensor.requires_grad
    assert not capture.tensor.is_inference()
    weight = torch.ones_like(capture.tensor, requires_grad=True)
    (weight * capture.tensor).sum().backward()
    assert torch.equal(weight.grad, capture.tensor)
    assert all(torch.equal(v, values[k]) for k, v in teacher.model.state_dict().items())


def test_running_converts_the_student_s_inputs():
    """The teacher inside = the teacher alone behind its own preprocessor."""
    from mmkd_plugin.taps import TapPoint

    def model(mean, std, swap):
        return toy_model(
            1,
            data_preprocessor=dict(type='ImgDataPreprocessor', mean=mean, std=std, bgr_to_rgb=swap),
        )

    student = model([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], True)
    alone = model([103.5, 116.3, 123.7], [1.0, 1.0, 1.0], False).eval()
    raw = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    batch = student.data_preprocessor(dict(inputs=list(raw.byte())))['inputs']
    expected = alone.backbone(alone.data_preprocessor(dict(inputs=list(raw.byte())))['inputs'])

    teacher = Teacher(copy.deepcopy(alone))
    points = [TapPoint('backbone')]
    teacher.connect(student, points)
    teacher.run(batch)
    for capture, wanted in zip(teacher.recorder.read(points), expected):
        torch.testing.assert_close(capture.tensor, wanted, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(alone.backbone(batch)[0], expected[0], atol=0.1)


@pytest.mark.parametrize(
    'teacher, message',
    [
        ('previous_epok', r"not str \('previous_epok'\)"),
        (dict(config={}), "has no 'model'"),
        (dict(config=dict(model=None), allow_random=True), 'model=None must be a dict'),
    ],
)
def test_what_is_no_teacher_is_explained(teacher, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_teacher(teacher)
