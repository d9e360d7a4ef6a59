"""Where a checkpoint lies: a file of this machine, or an address that is downloaded once."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.fileio.backends.registry_utils import prefix_to_backends
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_files

from ..checks import near_matches, nearest
from ..errors import CheckpointError
from ..files import whole_file
from .file import is_checkpoint, kind_of
from .load import verify_file

# A server that sends less than this in so many seconds is given up.
PATIENCE = 60.0
LEAST_BYTES = 64 * 1024
SUFFIXES = ('.pth', '.pt', '.safetensors')


def fetch(checkpoint: str | Path, key: str, advice: str = '') -> Path:
    """Path of a checkpoint on this machine; what lies elsewhere is downloaded into torch's cache.

    Args:
        checkpoint: path (``~`` is the home folder), or an address: ``http(s)://``, ``file://``,
            a name of MMEngine's lists, as ``torchvision://resnet50``, or one that a file backend of
            MMEngine reads, as ``s3://bucket/file.pth``.
        key: config key, for messages.
        advice: how to get the file, said if it is missing.

    Raises:
        CheckpointError: if there is no such file, or its address is none that is read.
    """
    if not isinstance(checkpoint, (str, Path)):
        raise CheckpointError(f'{key}={checkpoint!r} must be a path or a URL.')
    text = str(checkpoint)
    scheme, mark, rest = text.partition('://')
    if not mark or isinstance(checkpoint, Path):
        return _local(text, key, advice)
    if scheme == 'file':
        return _local(unquote(rest.removeprefix('localhost')), key, advice)
    if scheme in _CATALOGUES:
        text = _address(scheme, rest, key)
        scheme = text.partition('://')[0] if '://' in text else ''
    if scheme in ('http', 'https'):
        return _download(text, key, _over_http)
    if not scheme:  # a list of the user's own may name a file
        return _local(text, key, advice)
    if scheme == 'pavi':
        return _download(text, key, _from_pavi)
    store = scheme.rpartition(':')[2]  # as in cluster:s3://
    if store in prefix_to_backends:
        return _download(text, key, _from_backend)
    if store in ('gs', 'oss', 'hdfs'):
        what = (
            f'lies in an object store ({scheme}), for which MMEngine has no file backend '
            '(mmengine.fileio.register_backend adds one)'
        )
    else:
        known = ['http', 'https', 'file', 'pavi', *filter(None, prefix_to_backends), *_CATALOGUES]
        what = f'begins with {scheme[:40]!r}, which names no place; {nearest(scheme[:40], known)}'
    raise CheckpointError(
        f'{key}={text[:200]!r} {what}. Copy the file to this machine and give its path.'
    )


def _local(name: str, key: str, advice: str) -> Path:
    path = Path(os.path.expanduser(name))
    try:
        if path.is_file():
            return path
        folder = path.parent
        there = folder.is_dir()
    except OSError as error:  # a name of 5,000 letters
        raise CheckpointError(f'{key}={name[:200]!r} cannot be a file: {error.strerror}.') from None
    files: list[str] = []
    if there:
        files = [str(f) for suffix in SUFFIXES for f in folder.glob(f'*{suffix}')]
        place = 'this folder' if folder == Path('.') else f'the folder {folder}'
        hint = f' {nearest(str(path), files)}.' if files else f' In {place} is no *.pth file.'
    else:
        hint = f' There is no folder {folder}, seen from {Path.cwd()}.'
    advice = advice and f' {advice}'
    raise CheckpointError(
        f'{key}={name!r} does not exist.{hint}{advice}',
        file=name,
        folder_exists=there,
        nearest=near_matches(str(path), files),
    )


# -- names of MMEngine's lists -----------------------------------------------------------------


def _openmmlab() -> dict[str, str]:
    urls = dict(mmengine_files.get_external_models())
    for old, new in mmengine_files.get_deprecated_model_names().items():
        if new in urls:
            urls[old] = urls[new]
    home = mmengine_files._get_mmengine_home()
    return {n: u if '://' in u else os.path.join(home, u) for n, u in urls.items()}


_CATALOGUES: dict[str, Callable[[], dict[str, str]]] = {
    'torchvision': lambda: mmengine_files.get_torchvision_models(),
    'modelzoo': lambda: mmengine_files.get_torchvision_models(),
    'open-mmlab': _openmmlab,
    'openmmlab': _openmmlab,
    'mmcls': lambda: mmengine_files.get_mmcls_models(),
}


def _address(scheme: str, name: str, key: str) -> str:
    """The URL that MMEngine lists for a name."""
    urls = _CATALOGUES[scheme]()
    if name not in urls:
        raise CheckpointError(
            f'{key}={f"{scheme}://{name}"[:200]!r}: MMEngine knows no such model; '
            f'{nearest(name[:100], urls)}.'
        )
    return urls[name]


# -- downloads ---------------------------------------------------------------------------------


Receive = Callable[[str, Path], str]  # writes what lies at an address to a file; its SHA-256


def _download(url: str, key: str, receive: Receive) -> Path:
    """Downloads into torch's cache: once per machine what the name tells apart or a server has.

    What lies in an object store is written by its user, and may be another file by now.
    """
    name = _name(url, key) if receive is _over_http else url.rpartition('/')[2]
    # Published names end in a part of the file's hash: unique, and a check of the download. Any
    # other name (epoch_12.pth) may stand for several files, so it is made unique by the URL.
    published = re.search(r'[-_]([0-9a-f]{8,})\.\w+$', name)
    if not published:
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name[-100:]}'
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    changes = receive is not _over_http and not published
    problem = ''
    try:
        first = int(os.environ.get('LOCAL_RANK', get_rank())) == 0
        if first and (changes or not _is_cached(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(url, path, published and published.group(1), receive)
    except (OSError, ValueError, http.client.HTTPException, CheckpointError) as error:
        problem = str(error) or type(error).__name__
    finally:
        barrier()  # also after an error, so that no other process waits for ever
    if not problem and not path.is_file():
        problem = 'another process could not fetch it'
    if problem:
        raise CheckpointError(
            f'{key}={url[:300]!r} could not be downloaded: {problem.rstrip(".")}. '
            'Fetch the file by hand and give its path.'
        )
    return path


def _name(url: str, key: str) -> str:
    """The file's name of an address of the web.

    Raises:
        CheckpointError: it is no address.
    """
    try:
        parts = urlparse(url)
        host = parts.hostname
    except ValueError as error:
        raise CheckpointError(f'{key}={url[:200]!r} is no valid URL: {error}.') from None
    if not host:
        raise CheckpointError(f'{key}={url[:200]!r} is no valid URL: it names no host.')
    return Path(unquote(parts.path)).name


def _is_cached(path: Path) -> bool:
    """Whether the cache has the file; drops what is none, such as the page of a hotel's network."""
    if not path.is_file():
        return False
    if is_checkpoint(path):
        return True
    print_log(f'{path} is no checkpoint ({kind_of(path)}): it is fetched again.', 'current')
    path.unlink()
    return False


def _save(url: str, path: Path, published: str | None, receive: Receive) -> None:
    """Writes what lies at an address to ``path``, if it is whole and a checkpoint.

    The SHA-256 of the file begins with ``published``, if that is known.

    Raises:
        OSError: no answer, a slow one, another length or hash than promised.
        CheckpointError: the answer is no checkpoint.
    """
    with whole_file(path) as part:
        digest = receive(url, part)
        if published and not digest.startswith(published):
            raise OSError(f'its hash begins with {digest[:8]}, the name says {published}')
        if not is_checkpoint(part):
            raise OSError(f'the server sent no checkpoint, but {kind_of(part)}')
        verify_file(part, 'the downloaded file')


def _over_http(url: str, part: Path) -> str:
    request = urllib.request.Request(url, headers={'User-Agent': 'mmkd_plugin'})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer, open(part, 'wb') as file:
        return _copy(answer, file, url)


def _from_backend(url: str, part: Path) -> str:
    """By the file backend of MMEngine that is registered for the prefix, as PetrelBackend."""
    print_log(f'Reading {url}', 'current')
    try:
        content = get_file_backend(url).get(url)
        part.write_bytes(content)
    except Exception as error:  # of any client: what it cannot find or reach, or is missing itself
        store, name = url.partition('://')[0], type(error).__name__
        raise OSError(f'it lies in an object store ({store}): {name}: {error}') from error
    return hashlib.sha256(content).hexdigest()


def _from_pavi(url: str, part: Path) -> str:
    try:
        from pavi import modelcloud

        modelcloud.get(url.removeprefix('pavi://')).download(str(part))
    except Exception as error:
        raise OSError(f'the model cloud of pavi: {type(error).__name__}: {error}') from error
    return hashlib.sha256(part.read_bytes()).hexdigest()


def _copy(answer: Any, file: Any, url: str) -> str:
    """Copies an answer block by block; returns the SHA-256 of what came."""
    length = answer.headers.get('Content-Length')
    total = int(length) if length and length.isdigit() else None
    of = f' of {total / 2**20:.0f} MiB' if total else ''
    print_log(f'Downloading {url}{of.replace(" of", ":")}', 'current')
    digest, count, before, since, shown = hashlib.sha256(), 0, 0, time.monotonic(), 0.0
    while block := answer.read1(1 << 20):
        file.write(block)
        digest.update(block)
        count += len(block)
        now = time.monotonic()
        if now - since > PATIENCE:
            if count - before < LEAST_BYTES:
                raise TimeoutError(f'only {count - before} bytes came in {now - since:.0f} s')
            before, since = count, now
        if now - shown > 10:
            if shown:
                print_log(f'  {count / 2**20:.0f} MiB{of}', 'current')
            shown = now
    if total is not None and count != total:
        raise OSError(f'{count} of {total} bytes came, then the connection ended')
    return digest.hexdigest()
