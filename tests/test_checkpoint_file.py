"""Checkpoint files: whole or damaged, of which kind, and what reading them may do."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch

from mmkd_plugin.checkpoint import CheckpointError, load_file, verify_file


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f'layer{i}.weight': torch.randn(40, 10, generator=generator) for i in range(4)}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=state(), meta=dict(epoch=1)), path)
    return path


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def inside_a_tensor(path: Path) -> int:
    """Offset of a byte in the middle of the contents of a tensor's record."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    data = path.read_bytes()
    name = int.from_bytes(data[record.header_offset + 26 : record.header_offset + 28], 'little')
    extra = int.from_bytes(data[record.header_offset + 28 : record.header_offset + 30], 'little')
    return record.header_offset + 30 + name + extra + record.file_size // 2


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
