"""Checkpoint files: whole or damaged, of which kind, and what reading them may do."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import Calls, flip, inside_a_tensor
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR, OptimWrapper
from torch import nn

from mmkd_plugin.checkpoints.fit import classes_of
from mmkd_plugin.checkpoints.load import load_file, verify_file
from mmkd_plugin.errors import CheckpointError


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f'layer{i}.weight': torch.randn(40, 10, generator=generator) for i in range(4)}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=state(), meta=dict(epoch=1)), path)
    return path


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize('read', [verify_file, load_file])
def test_one_flipped_bit_in_a_tensor_is_noticed(file, read):
    read(file, 'teacher.checkpoint')
    flip(file, inside_a_tensor(file), 6)
    with pytest.raises(CheckpointError) as caught:
        read(file, 'teacher.checkpoint')
    assert f"teacher.checkpoint='{file}'" in str(caught.value)
    assert 'checksum' in str(caught.value) and 'trust' not in str(caught.value)


@pytest.mark.parametrize('old_format', [False, True])
def test_no_damage_gives_other_weights(tmp_path, old_format):
    """Bits flipped, blocks of zeros, ends cut off: refused, or harmless.

    The old format has no checksums: there only what breaks its structure can be noticed.
    """
    path, chance, refused = tmp_path / 'a.pth', random.Random(0), 0
    torch.save(dict(state_dict=state()), path, _use_new_zipfile_serialization=not old_format)
    whole = path.read_bytes()
    for trial in range(200):
        data, place = bytearray(whole), chance.randrange(len(whole))
        if trial % 3 == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif trial % 3 == 1:
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        else:
            del data[place:]
        path.write_bytes(data)
        try:
            verify_file(path)
            loaded = load_file(path, 'teacher.checkpoint')
        except CheckpointError as error:
            assert 'trust' not in str(error)
            refused += 1
            continue
        if not old_format:
            assert all(torch.equal(v, loaded['state_dict'][k]) for k, v in state().items())
    assert refused > (40 if old_format else 150)


def test_a_sound_file_of_the_old_format_is_sound(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save(dict(state_dict=state()), path, _use_new_zipfile_serialization=False)
    verify_file(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match='truncated'):
        verify_file(path)


def test_a_missing_file_is_no_sound_file(tmp_path):
    for path in (tmp_path / 'none.pth', tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            verify_file(path)


# -- what is read ------------------------------------------------------------------------------


def plain_contents() -> dict:
    """Whatever MMEngine and usual hooks put into a checkpoint."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = OneCycleLR(OptimWrapper(optimizer), eta_max=0.1, total_steps=10)
    meta = dict(
        numbers=(1, 2.5, None, True, 2**70, 1j),
        texts=('a', b'b', bytearray(b'c')),
        sets=({1, 2}, frozenset([3])),
        kinds=(slice(1, 2), torch.Size([1]), torch.device('cpu'), torch.bfloat16),
        counter=Counter([1, 1, 2]),
        config=ConfigDict(a=dict(b=1)),
        numpy=(np.float32(3), np.bool_(True)),
    )
    return dict(
        meta=meta,
        state_dict=OrderedDict(model.state_dict(), half=torch.ones(2).half(), t=torch.eye(3).t()),
        parameter=nn.Parameter(torch.zeros(2)),
        optimizer=optimizer.state_dict(),
        param_schedulers=[schedule.state_dict()],
        arrays=[np.arange(6.0).reshape(2, 3), np.array(['x', 'yy']), np.asfortranarray(np.eye(2))],
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize('old_format', [False, True])
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_checkpoints_hold_is_read_as_torch_reads_it(tmp_path, old_format, protocol):
    path, contents = tmp_path / 'a.pth', plain_contents()
    torch.save(
        contents,
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not old_format,
    )
    loaded, expected = load_file(path, 'key'), torch.load(path, weights_only=False)
    for state in (*loaded['param_schedulers'], *expected['param_schedulers']):
        state.pop('anneal_func')  # a function of the scheduler's class: it keeps its own
    assert same(loaded, expected)
    assert loaded['state_dict']['t'].stride() == (1, 3)


def test_logs_go_on_and_have_the_statistics_of_their_class(tmp_path):
    history = HistoryBuffer()
    for value in (3.0, 1.0, 2.0):
        history.update(value)
    torch.save(dict(log=history), tmp_path / 'a.pth')
    log = load_file(tmp_path / 'a.pth', 'key')['log']
    assert log.data[0].tolist() == [3.0, 1.0, 2.0] and log.statistics('mean', 2) == 1.5
    log.update(7.0)
    assert log.current() == 7.0


@pytest.mark.parametrize(
    'meta, classes',
    [
        (dict(dataset_meta=[dict(classes=('a', 'b')), dict(classes=('a',))]), ('a', 'b')),
        (dict(dataset_meta=dict(classes=np.array(['a', 'b']))), ('a', 'b')),
        (dict(dataset_meta=dict(classes='thing')), ('thing',)),
        (dict(CLASSES=['a']), ('a',)),
        (dict(dataset_meta=dict(classes=[['a'], ['b']])), None),
        (dict(dataset_meta=7), None),
        ('text', None),
    ],
)
def test_class_names_in_every_form(tmp_path, meta, classes):
    torch.save(dict(meta=meta, state_dict=state()), tmp_path / 'a.pth')
    assert classes_of(load_file(tmp_path / 'a.pth', 'key')) == classes


def test_safetensors_are_read_or_named(tmp_path, monkeypatch):
    """The format: length of a header, the header in JSON, the numbers."""
    path = tmp_path / 'a.safetensors'
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    numbers = np.array([1, 2], dtype='<f4').tobytes()
    path.write_bytes(len(header).to_bytes(8, 'little') + header + numbers)
    try:
        import safetensors  # noqa: F401
    except ImportError:
        pass
    else:
        assert load_file(path, 'key')['w'].tolist() == [1.0, 2.0]
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(CheckpointError, match='is a safetensors file.*pip install safetensors'):
        load_file(path, 'key')


@pytest.mark.parametrize(
    'content, name',
    [
        (b'<html>Please log in</html>', 'a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'Git LFS'),
        (b'\x89HDF\r\n\x1a\n', 'HDF5'),
        (b'', 'an empty file'),
        (pickle.dumps(dict(model=1)), 'none of torch.save'),
    ],
)
def test_files_of_other_kinds_are_called_what_they_are(tmp_path, content, name):
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_file(path, 'key')


def test_a_program_is_no_checkpoint(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='TorchScript'):
        load_file(tmp_path / 'a.pth', 'key')


# -- files made to do harm ---------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_file(path, 'teacher.checkpoint')
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))
    assert 'trust' not in str(caught.value)


@pytest.mark.parametrize('old_format', [False, True])
@pytest.mark.parametrize(
    'call, name',
    [
        ((os.system, ('touch {mark}',)), 'os.system'),
        ((os.popen, ('touch {mark}',)), 'os.popen'),
        ((subprocess.run, (['touch', '{mark}'],)), 'subprocess.run'),
        ((subprocess.Popen, (['touch', '{mark}'],)), 'subprocess.Popen'),
        ((eval, ("open('{mark}', 'w')",)), 'builtins.eval'),
        ((open, ('{mark}', 'w')), 'open'),
    ],
)
def test_code_is_named_and_neither_run_nor_recommended(tmp_path, old_format, call, name):
    mark = tmp_path / 'mark'
    function, args = call
    args = tuple(
        [part.format(mark=mark) for part in a] if isinstance(a, list) else a.format(mark=mark)
        for a in args
    )
    path = tmp_path / 'a.pth'
    contents = [Calls(function, args), Calls(np.float32, (1,))]
    torch.save(contents, path, _use_new_zipfile_serialization=not old_format)
    refused(path, name, 'run code', 'made to do harm')
    # an object that may be trusted in front of it changes nothing
    torch.save([Path('x'), *contents], path, _use_new_zipfile_serialization=not old_format)
    refused(path, name, 'made to do harm')
    assert not mark.exists()


@pytest.mark.parametrize(
    'name', ['cos.OrderedDict', 'torch._u\x0b_x.y', 'torch._utilz.f', 'torch.Siz']
)
def test_names_that_only_damage_makes_get_no_advice(tmp_path, name):
    module, _, last = name.rpartition('.')
    refused(rewritten(tmp_path, f'\x80\x02c{module}\n{last}\n.'.encode('latin1')), 'not known here')


def test_a_module_within_another_is_named(tmp_path):
    """``getattr(torch.serialization.os, 'system')('true')``; the name itself is harmless."""
    take = b'cbuiltins\ngetattr\n(ctorch.serialization\nos\nU\x06systemtR'
    refused(rewritten(tmp_path, b'\x80\x02' + take + b'(U\x04truetR.'), 'os', 'made to do harm')


def test_arrays_take_no_pointers(tmp_path):
    """Each of these crashes a process, or may: its loading would follow addresses of the file."""
    path, address = tmp_path / 'a.pth', b'A' * 16
    direct = Calls(np.ndarray, ((2,), 'O', address))
    log = pickle_of_a_log(direct)
    fields = np.zeros(2, dtype=[('a', 'f4'), ('b', 'O')])
    for contents in (direct, log, np.array([1, 'a'], dtype=object), fields, np.dtype('O')):
        torch.save(dict(state_dict=state(), x=contents), path)
        refused(path, 'damaged')


def pickle_of_a_log(array) -> HistoryBuffer:
    log = HistoryBuffer()
    log._log_history = array
    return log


def test_tensors_do_not_reach_beyond_their_storage(tmp_path):
    path = tmp_path / 'a.pth'
    rebuild = torch._utils._rebuild_tensor_v2
    storage = torch.zeros(4).storage()
    for offset, size, stride in (
        (0, (10**9,), (1,)),
        (3, (2,), (1,)),
        (0, (2, 3), (2, 1)),
        (0, (2,), (-1,)),
        (-1, (1,), (1,)),
        (0, (1 << 40,), (0,)),
    ):
        call = Calls(rebuild, (storage, offset, size, stride, False, OrderedDict()))
        torch.save(call, path)
        refused(path, 'a tensor of size')


def test_keys_that_take_for_ever_are_refused(tmp_path):
    """The hash of a tuple is that of its parts, so that 60 levels are 2**60 of them."""
    nested = ()
    for _ in range(60):
        nested = (nested, nested)
    program = pickle.dumps(nested, 2)[:-1]
    path = rewritten(tmp_path, b'\x80\x02}' + program[2:] + b'K\x01s.')
    refused(path, 'a key of the type tuple')


def test_numbers_of_numpy_may_be_keys(tmp_path):
    torch.save({np.int64(3): 'a', (np.float32(1), 2): 'b'}, tmp_path / 'a.pth')
    assert load_file(tmp_path / 'a.pth', 'x') == {3: 'a', (1.0, 2): 'b'}


def test_a_list_is_not_copied_without_end(tmp_path):
    """Ten thousand sets of one list of 50,000 numbers, in 300 KB: 20 GB."""
    numbers = b''.join(b'J' + n.to_bytes(4, 'little') for n in range(50_000))
    one = b'cbuiltins\nfrozenset\nh\x01\x85R'
    path = rewritten(tmp_path, b'\x80\x02]q\x01](' + one * 10_000 + b'e.')
    load_file(path, 'key')  # of an empty list
    start = b'\x80\x02]q\x01(' + numbers + b'e0]('
    refused(rewritten(tmp_path, start + one * 10_000 + b'e.'), 'again and again')


def rewritten(folder: Path, program: bytes, compress: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch with another pickle in it."""
    torch.save(state(), folder / 'plain.pth')
    path = folder / 'a.pth'
    with (
        zipfile.ZipFile(folder / 'plain.pth') as source,
        zipfile.ZipFile(path, 'w', compress) as target,
    ):
        for item in source.infolist():
            is_program = item.filename.endswith('data.pkl')
            target.writestr(item.filename, program if is_program else source.read(item.filename))
    return path


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    path = rewritten(tmp_path, bytes(50_000_000), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    refused(path, 'is compressed')


def test_records_that_share_bytes_are_refused(tmp_path):
    """Ten thousand entries of a directory can name the same megabyte."""
    path = rewritten(tmp_path, b'N.')
    with zipfile.ZipFile(path, 'a') as archive:
        twin = archive.infolist()[0]
        copied = zipfile.ZipInfo('archive/data/99')
        for name in ('header_offset', 'CRC', 'compress_size', 'file_size'):
            setattr(copied, name, getattr(twin, name))
        archive.filelist.append(copied)
        archive._didModify = True
    refused(path, 'overlaps')


@pytest.mark.parametrize(
    'tensor, kind',
    [
        (lambda: torch.eye(2).to_sparse(), 'a sparse tensor'),
        (lambda: torch.eye(2).to_sparse_csr(), 'a sparse tensor'),
        (lambda: torch.empty(2, device='meta'), 'a meta tensor'),
        (lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), 'a quantized'),
        (lambda: nn.Parameter(torch.eye(2).to_sparse()), 'a sparse tensor'),
    ],
)
def test_tensors_of_other_kinds_are_named_with_their_entry(tmp_path, tensor, kind):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=OrderedDict(state(), **{'head.fc.weight': tensor()})), path)
    refused(path, "'head.fc.weight'", kind)
