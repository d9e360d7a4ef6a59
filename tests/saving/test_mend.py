"""--resume goes on from a checkpoint that is sound and finite, and removes none."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from toys import hook_config, runner_config, train

from mmkd_plugin.errors import CheckpointError
from mmkd_plugin.hooks import mend_last_checkpoint


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The files of a run with three checkpoints."""
    folder = tmp_path_factory.mktemp('mend')
    train(runner_config(folder, hook_config(), max_iters=6))
    return {path.name: path.read_bytes() for path in folder.glob('*') if path.is_file()}


@pytest.fixture
def work(run, tmp_path):
    for name, contents in run.items():
        (tmp_path / name).write_bytes(contents)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_6.pth'))
    return tmp_path


def change(path, edit, **kwargs):
    saved = torch.load(path, weights_only=False)
    edit(saved)
    torch.save(saved, path, **kwargs)


def poison(saved):
    next(iter(saved['state_dict'].values())).view(-1)[0] = float('nan')


def flip(path):
    """One bit within the largest tensor of the file."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda item: item.file_size)
    data = bytearray(path.read_bytes())
    start = (
        record.header_offset
        + 30
        + int.from_bytes(data[record.header_offset + 26 : record.header_offset + 28], 'little')
        + int.from_bytes(data[record.header_offset + 28 : record.header_offset + 30], 'little')
    )
    data[start + 5] ^= 64
    path.write_bytes(data)


DAMAGES = dict(
    cut=lambda path: path.write_bytes(path.read_bytes()[:2000]),
    empty=lambda path: path.write_bytes(b''),
    junk=lambda path: path.write_bytes(os.urandom(5000)),
    bit=flip,
    nan=lambda path: change(path, poison),
    other=lambda path: torch.save([1, 2], path),
)


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr('mmkd_plugin.saving.mend.print_log', lambda line, *_: lines.append(line))
    return lines


@pytest.mark.parametrize('damage', DAMAGES)
def test_the_newest_usable_one_is_taken(work, damage, told):
    DAMAGES[damage](work / 'iter_6.pth')
    spoilt = (work / 'iter_6.pth').read_bytes()
    assert mend_last_checkpoint(work) == work / 'iter_4.pth'
    assert (work / 'last_checkpoint').read_text() == str(work / 'iter_4.pth')
    assert (work / 'iter_6.pth.damaged').read_bytes() == spoilt
    assert not (work / 'iter_6.pth').exists()
    assert len(told) == 2 and 'It is kept as iter_6.pth.damaged' in told[0]
    assert told[1].endswith(f'going on from {work / "iter_4.pth"}.')
    runner = train(runner_config(work, hook_config(), max_iters=6, resume=True))
    assert runner.iter == 6 and (work / 'iter_6.pth').is_file()


@pytest.mark.parametrize('damage', ['cut', 'bit', 'nan'])
def test_where_nothing_is_usable_nothing_changes(work, damage):
    for name in ('iter_2.pth', 'iter_4.pth', 'iter_6.pth'):
        DAMAGES[damage](work / name)
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    for _ in range(2):  # nor would a second try start at 0
        with pytest.raises(CheckpointError, match='no checkpoint in .* that can be used'):
            mend_last_checkpoint(work)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before


def test_what_cannot_be_read_now_keeps_its_name(work, monkeypatch, told):
    opened = Path.open

    def refusing(path, *args, **kwargs):
        if path.name == 'iter_6.pth':
            raise PermissionError(13, 'Permission denied')
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', refusing)
    assert mend_last_checkpoint(work) == work / 'iter_4.pth'
    assert (work / 'iter_6.pth').is_file() and not list(work.glob('*.damaged'))
    assert any('cannot be read (Permission denied)' in text for text in told)


def test_an_old_format_is_used(work):
    change(work / 'iter_6.pth', lambda saved: None, _use_new_zipfile_serialization=False)
    assert mend_last_checkpoint(work) == work / 'iter_6.pth'
    assert sorted(path.name for path in work.glob('iter_*')) == [
        'iter_2.pth',
        'iter_4.pth',
        'iter_6.pth',
    ]


@pytest.mark.parametrize('junk', [b'', b'\x00\xff\xfe\x80' * 9, b'/nowhere/iter_6.pth', 'folder'])
def test_a_bad_pointer(work, junk, told):
    pointer = work / 'last_checkpoint'
    pointer.unlink()
    if junk == 'folder':
        pointer.mkdir()
        (pointer / 'mine').write_text('x')
    else:
        pointer.write_bytes(junk)
    assert mend_last_checkpoint(work) == work / 'iter_6.pth'
    assert pointer.read_text() == str(work / 'iter_6.pth')
    if junk == 'folder':
        assert (work / 'last_checkpoint.damaged' / 'mine').is_file()
    assert 'going on from' in told[-1]


def test_a_pointer_that_dangles_alone_stops(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/nowhere/iter_4.pth')
    with pytest.raises(CheckpointError, match='/nowhere/iter_4.pth, which does not exist'):
        mend_last_checkpoint(tmp_path)


def test_the_file_that_is_named_comes_first(work):
    (work / 'last_checkpoint').write_text(str(work / 'iter_4.pth'))
    assert mend_last_checkpoint(work) == work / 'iter_4.pth'
    assert (work / 'iter_6.pth').is_file()


def test_other_ranks_do_nothing(work, monkeypatch):
    DAMAGES['cut'](work / 'iter_6.pth')
    monkeypatch.setenv('RANK', '1')
    assert mend_last_checkpoint(work) is None
    assert (work / 'iter_6.pth').is_file()


def test_what_a_kill_left_behind_is_removed_by_max_keep_ckpts(tmp_path, run):
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1)

    def config(until, **kwargs):
        hooks = dict(checkpoint=checkpoint)
        return runner_config(
            tmp_path, hook_config(), max_iters=until, default_hooks=hooks, **kwargs
        )

    train(config(4))
    (tmp_path / 'iter_2.pth').write_bytes(run['iter_2.pth'])  # killed before it was removed
    (tmp_path / 'iter_4.pth.part').write_bytes(b'half')
    (tmp_path / 'best.pth').write_bytes(b'mine')
    assert mend_last_checkpoint(tmp_path) == tmp_path / 'iter_4.pth'
    train(config(8, resume=True))
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['best.pth', 'iter_8.pth']
