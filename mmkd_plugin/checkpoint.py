"""Reading checkpoint files without running code from them, and loading all of a model."""

from __future__ import annotations

import codecs
import hashlib
import logging
import os
import pickle
import re
import types
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer, print_log
from mmengine.utils import digit_version
from torch import nn

from .class_map import class_names
from .registry import nearest


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says what to do."""


def fetch(checkpoint: str, key: str, advice: str = '') -> Path:
    """Path of a checkpoint on this machine; a URL is downloaded once into torch's cache.

    Args:
        checkpoint: path or http(s) URL.
        key: config key, for messages.
        advice: how to get the file, said if it is missing.

    Raises:
        CheckpointError: if there is no such file; lists similar files of the same folder.
    """
    if urlparse(str(checkpoint)).scheme in ('http', 'https'):
        return _download(str(checkpoint), key)
    path = Path(os.path.expanduser(str(checkpoint)))
    if not path.is_file():
        folder = path.parent
        if folder.is_dir():
            files = [str(f) for pattern in ('*.pth', '*.pt') for f in folder.glob(pattern)]
            place = 'this folder' if folder == Path('.') else f'the folder {folder}'
            hint = f' {nearest(str(path), files)}.' if files else f' In {place} is no *.pth file.'
        else:
            hint = f' There is no folder {folder}, seen from {Path.cwd()}.'
        advice = advice and f' {advice}'
        raise CheckpointError(f'{key}={str(checkpoint)!r} does not exist.{hint}{advice}')
    return path


def _download(url: str, key: str) -> Path:
    """Downloads into torch's cache, once per machine."""
    name = Path(urlparse(url).path).name
    # Published names end in a part of the file's hash: unique, and a check of the download. Any
    # other name (epoch_12.pth) may stand for several files, so it is made unique by the URL.
    published = re.search(r'[-_]([0-9a-f]{8,})\.\w+$', name)
    if not published:
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}'
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    try:
        if int(os.environ.get('LOCAL_RANK', get_rank())) == 0 and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                url, str(path), hash_prefix=published and published.group(1)
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash is another one
        raise CheckpointError(
            f'{key}={url!r} could not be downloaded ({error}). '
            'Fetch the file by hand and give its path.'
        ) from error
    finally:
        barrier()  # also after an error, so that no other process waits for ever
    return path


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which pickles of HistoryBuffer name its own methods.

    The real one would open the whole interpreter to a file: ``getattr.__self__`` is ``builtins``.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'Unsupported global: getattr of {name!r}')
    return getattr(HistoryBuffer, name)


def _mmengine_globals() -> list:
    """Plain data types that MMEngine's own checkpoints hold beside tensors."""
    multiarray = (np._core if int(np.__version__.split('.')[0]) > 1 else np.core).multiarray
    dtypes = {type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8', 'u4', 'b1')}
    return [
        HistoryBuffer,
        slice,
        np.ndarray,
        np.dtype,
        multiarray._reconstruct,
        multiarray.scalar,
        *dtypes,
        (_history_method, 'builtins.getattr'),
    ]


def _load_plain_data(path: Path) -> Any:
    """``torch.load`` restricted to tensors, plain data and :func:`_mmengine_globals`.

    Raises:
        pickle.UnpicklingError: naming the first object of another kind.
    """
    if digit_version(torch.__version__) >= digit_version('2.6'):
        with torch.serialization.safe_globals(_mmengine_globals()):
            return torch.load(path, map_location='cpu', weights_only=True)
    # Older versions of weights_only cannot be told of further types: the same list, enforced by
    # an unpickler that knows no other names.
    plain = types.ModuleType('plain_pickle')
    plain.Unpickler = _PlainUnpickler
    plain.load = lambda file, **kwargs: _PlainUnpickler(file, **kwargs).load()
    return torch.load(path, map_location='cpu', pickle_module=plain, weights_only=False)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        from torch._weights_only_unpickler import _get_allowed_globals

        known = {**_get_allowed_globals(), '_codecs.encode': codecs.encode}  # how bytes are written
        for entry in _mmengine_globals():
            if not isinstance(entry, tuple):
                entry = (entry, f'{entry.__module__}.{entry.__qualname__}')
            known[entry[1]] = entry[0]
        path = f'{module.replace("__builtin__", "builtins")}.{name}'  # pickles use Python 2's name
        if path not in known:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {path}')
        return known[path]


def load_file(path: Path, key: str, trust: bool = False) -> Any:
    """Loads a checkpoint file onto the CPU, safely.

    Only tensors and plain data are unpickled. ``trust=True`` allows anything, code included.

    Raises:
        CheckpointError: if the file is truncated, no checkpoint, or holds objects that only
            trusted files may.
    """
    try:
        return _load_plain_data(path)
    except pickle.UnpicklingError as error:
        if not _is_torch_file(path) or 'magic number' in str(error):
            raise _not_a_checkpoint(path, key, error) from error
        if trust:
            return torch.load(path, map_location='cpu', weights_only=False)
        refused = re.search(r'Unsupported (?:global: (?:GLOBAL )?|class )([\w.]+)', str(error))
        raise CheckpointError(
            f'{key}={str(path)!r} holds {refused.group(1) if refused else "objects"} besides '
            'tensors and plain data, so it was not loaded: unpickling it could run code. If you '
            'trust where the file comes from, add trust_checkpoint=True beside the checkpoint.'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _not_a_checkpoint(path, key, error) from error


def _is_torch_file(path: Path) -> bool:
    """Zip archives and old-style pickles of torch start with these bytes."""
    with open(path, 'rb') as file:
        head = file.read(4)
    return head == b'PK\x03\x04' or head[:1] == b'\x80'


def _not_a_checkpoint(path: Path, key: str, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch's own text is about weights_only
        reason = 'it is neither a zip archive nor a pickle of torch'
    return CheckpointError(
        f'{key}={str(path)!r} ({path.stat().st_size} bytes) is truncated or not '
        f'a PyTorch checkpoint ({reason}). Copy or download the file again.'
    )


def state_dict_of(checkpoint: Any, key: str) -> dict:
    """The weights in a loaded checkpoint, without the ``module.`` prefix of DDP.

    Raises:
        CheckpointError: if there are no weights in it.
    """
    state = checkpoint
    if isinstance(checkpoint, dict):
        for name in ('state_dict', 'model'):
            if isinstance(checkpoint.get(name), dict):
                state = checkpoint[name]
                break
    if not isinstance(state, dict) or not any(torch.is_tensor(v) for v in state.values()):
        found = (
            [str(name) for name in checkpoint][:10]
            if isinstance(checkpoint, dict)
            else type(checkpoint).__name__
        )
        raise CheckpointError(
            f"{key} holds no weights: expected a 'state_dict' of tensors, found {found}."
        )
    plain = OrderedDict((_without_prefix(name), value) for name, value in state.items())
    # Versions of the modules that saved it; by them modules convert names of older versions.
    plain._metadata = {
        _without_prefix(name): value
        for name, value in (getattr(state, '_metadata', None) or {}).items()
    }
    return plain


def _without_prefix(name: str) -> str:
    return re.sub(r'^module(\.|$)', '', name)


def classes_of(checkpoint: Any) -> tuple[str, ...] | None:
    """Class names stored in a checkpoint's meta by MMEngine (or MMDetection 2.x), or ``None``."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    return class_names(meta.get('dataset_meta')) or class_names(meta)


def load_all(model: nn.Module, state: dict, path: str, allow_partial: bool) -> None:
    """Loads ``state``; every parameter and buffer of ``model`` must be in it, and nothing else.

    Args:
        model: the teacher's network.
        state: result of :func:`state_dict_of`.
        path: of the file, for messages.
        allow_partial: go on, with a warning, where the file lacks entries or has more.

    Raises:
        CheckpointError: listing what is missing, misshapen or too much.
    """
    _copy_fitting(model, state)
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    missing = [k for k in wanted if k not in state]
    shapes = [
        f'{k} is {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the model'
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    if len(missing) == len(wanted):
        example, own = next(iter(state)), next(iter(wanted))
        raise CheckpointError(
            f'teacher.checkpoint={path!r} is of another model: none of its keys (first: '
            f'{example!r}) belongs to the teacher (first: {own!r}). Check the pair of config and '
            'checkpoint; a prefix in front of the names means that a wrapper saved the file.'
        )
    if shapes and not allow_partial:
        raise CheckpointError(
            f'teacher.checkpoint={path!r} does not fit teacher.config: {_few(shapes)}. Number of '
            'classes, depth or width differ; use the config that this checkpoint was trained with.'
        )
    if missing and not allow_partial:
        raise CheckpointError(
            f'teacher.checkpoint={path!r} lacks {len(missing)} of {len(wanted)} entries of the '
            f'teacher: {_few(missing)}. Use the matching config, or allow_partial=True to go on '
            'with random values there.'
        )
    # A deeper network's file fills a shallower one completely; other parts (ema_...) do no harm.
    parts = {k.split('.')[0] for k in wanted}
    extra = [
        k
        for k in state
        if k not in wanted and k.split('.')[0] in parts and not k.endswith('num_batches_tracked')
    ]
    if extra and not allow_partial:
        raise CheckpointError(
            f'teacher.checkpoint={path!r} has {len(extra)} entries that the teacher lacks: '
            f'{_few(extra)}. It was trained with another config, a deeper one perhaps; use that '
            'one, or allow_partial=True to leave these entries out.'
        )
    if missing or shapes or extra:
        print_log(
            f'allow_partial=True: the teacher keeps random values in {len(missing)} missing '
            f'and {len(shapes)} misshapen entries: {_few(missing + shapes)}; {len(extra)} '
            f'entries of the file are left out: {_few(extra)}',
            'current',
            logging.WARNING,
        )


def _copy_fitting(module: nn.Module, state: dict, prefix: str = '') -> None:
    """Copies the entries of right name and shape into ``module``.

    Unlike ``load_state_dict`` it shows every module the whole ``state``, in which modules rename
    what their older versions called otherwise (deformable convolutions, anchor-free heads).
    """
    version = state._metadata.get(prefix[:-1], {})
    module._load_from_state_dict(state, prefix, version, False, [], [], [])
    for name, child in module._modules.items():
        if child is not None:
            _copy_fitting(child, state, f'{prefix}{name}.')


def _few(items: Sequence[str], count: int = 8) -> str:
    more = f' and {len(items) - count} more' if len(items) > count else ''
    return ', '.join(items[:count]) + more
