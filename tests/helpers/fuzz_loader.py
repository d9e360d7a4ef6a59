"""Reads files that were damaged or made up, and measures; run by test_loader_fuzz.py."""

import io
import random
import resource
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmkd_plugin.checkpoints.fit import classes_of, state_dict_of
from mmkd_plugin.checkpoints.load import load_file, verify_file
from mmkd_plugin.errors import CheckpointError

kind, seed, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
chance, path = random.Random(seed), folder / 'mutant.pth'
log = HistoryBuffer([1.0, 2.0], [1, 1])
contents = dict(
    state_dict=dict(w=torch.ones(20, 20), p=torch.nn.Parameter(torch.ones(3))),
    meta=dict(dataset_meta=dict(classes=('a', 'b')), array=np.arange(3.0), text=np.array(['x'])),
    message_hub=dict(log_scalars=dict(loss=log)),
    sets={1, 2},
    number=np.float32(1),
)
plain = io.BytesIO()
torch.save(contents, plain, _use_new_zipfile_serialization=kind != 'old')
whole = plain.getvalue()

# The pieces from which hostile pickles are put together.
NAMES = [
    b'c' + module + b'\n' + name + b'\n'
    for module, name in [
        (b'os', b'system'),
        (b'builtins', b'eval'),
        (b'builtins', b'getattr'),
        (b'numpy', b'ndarray'),
        (b'numpy', b'dtype'),
        (b'numpy.core.multiarray', b'_reconstruct'),
        (b'numpy.core.multiarray', b'scalar'),
        (b'collections', b'OrderedDict'),
        (b'torch', b'Size'),
        (b'mmengine.logging.history_buffer', b'HistoryBuffer'),
        (b'torch', b'FloatStorage'),
        (b'torch._utils', b'_rebuild_tensor_v2'),
        (b'torch._utils', b'_rebuild_parameter'),
        (b'torch._utils', b'_rebuild_sparse_tensor'),
        (b'torch', b'device'),
        (b'_codecs', b'encode'),
        (b'builtins', b'bytearray'),
        (b'builtins', b'set'),
        (b'collections', b'Counter'),
    ]
]
ATOMS = [
    b'K\x05',
    b'J\xff\xff\xff\x7f',
    b'\x8a\x09' + b'\xff' * 8 + b'\x7f',
    b'N',
    b'\x88',
    b')',
    b']',
    b'}',
    b'(',
    b'\x8f',
    b'G' + bytes(8),
    b'C\x10' + b'A' * 16,
    b'X\x01\0\0\0O',
    b'X\x02\0\0\0f8',
    b'X\x06\0\0\0latin1',
    b'X\x07\0\0\0storage',
    b'X\x01\0\0\x000',
    b'X\x03\0\0\0cpu',
    b'X\xff\xff\xff\xff',
    b'r\xff\xff\xff\xff',
    b'j\xff\xff\xff\x7f',
    b'\x8e' + b'\xff' * 7 + b'\x0f',
    b'\x95' + b'\xff' * 7 + b'\x0f',
    b'B\xff\xff\xff\x7f',
]
CODES = [
    b'R',
    b'R',
    b'R',
    b'b',
    b'\x81',
    b'\x92',
    b'Q',
    b's',
    b'u',
    b'a',
    b'e',
    b't',
    b'\x85',
    b'\x86',
    b'\x87',
    b'q\x01',
    b'h\x01',
    b'0',
    b'1',
    b'2',
    b'd',
    b'l',
    b'\x90',
    b'\x91',
    b'o',
    b'\x82\x01',
    b'\x96' + b'\xff' * 7 + b'\x0f',
    b'\x97',
    b'\x93',
    b'\x94',
    b'P1\n',
]


def made_up():
    parts = [b'\x80\x02']
    for _ in range(chance.randrange(2, 60)):
        parts.append(chance.choice(chance.choice([NAMES, ATOMS, CODES, CODES])))
    return b''.join(parts) + b'.'


def damaged(data):
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place, what = chance.randrange(len(data)), chance.randrange(4)
        if what == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[place : place + 8] = chance.randbytes(8)
        elif what == 2:
            piece = data[place : place + chance.randrange(1, 40)]
            data[place:place] = piece * chance.randrange(1, 4)
        else:
            del data[place : place + chance.randrange(1, 40)]
    return bytes(data)


def repacked(program):
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(target, 'w') as archive:
        for item in source.infolist():
            if item.filename.endswith('data.pkl'):
                archive.writestr(item.filename, program(source.read(item.filename)))
            else:
                archive.writestr(item.filename, source.read(item.filename))
    return target.getvalue()


MAKE = dict(
    zip=lambda: damaged(whole),
    old=lambda: damaged(whole),
    pickle=lambda: repacked(damaged),
    program=lambda: repacked(lambda _: made_up()),
)
calls = []
CODE = ('os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn', 'socket.connect')


def watch(event: str, args: tuple) -> None:
    """Notes what runs code of a file; importing a module runs code, too, but of another one."""
    own = event == 'exec' and getattr(args[0], 'co_filename', '<string>') == '<string>'
    if armed and (own or event in CODE):
        calls.append(event)


sys.addaudithook(watch)
armed, refused, slowest = False, 0, 0.0
path.write_bytes(whole)
load_file(path, 'key')  # what is imported or compiled once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(count):
    mutant = MAKE[kind]()
    path.write_bytes(mutant)
    began, armed = time.monotonic(), True
    try:
        verify_file(path, 'key')
        loaded = load_file(path, 'key')
        classes_of(loaded)
        state_dict_of(loaded, 'key')
    except CheckpointError as error:
        refused += 1
        assert kind != 'zip' or 'trust_checkpoint' not in str(error)
    finally:
        armed = False
    slowest = max(slowest, time.monotonic() - began)
    assert not calls, (number, calls)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print('RESULT', refused, slowest, (after - before) * 1024)
