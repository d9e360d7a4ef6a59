"""Addresses of checkpoints: what is downloaded is whole and a checkpoint, or is not kept."""

from __future__ import annotations

import http.server
import threading
import time
from pathlib import Path

import pytest
import torch

from mmkd_plugin.checkpoints import download
from mmkd_plugin.checkpoints.download import fetch
from mmkd_plugin.checkpoints.load import load_file
from mmkd_plugin.errors import CheckpointError


class Server(http.server.ThreadingHTTPServer):
    """Answers the n-th request with the n-th of ``answers``, then always with the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.answers: list = []
        self.asked = 0
        self.url = f'http://127.0.0.1:{self.server_address[1]}/epoch_1.pth'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        body, length, pause = server.answers[min(server.asked, len(server.answers) - 1)]
        server.asked += 1
        self.send_response(200)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        for begin in range(0, len(body), 4096):
            try:
                self.wfile.write(body[begin : begin + 4096])
                self.wfile.flush()
            except OSError:
                return  # the client has given up
            time.sleep(pause)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def whole(tmp_path) -> bytes:
    torch.save(dict(state_dict=dict(w=torch.arange(4000.0))), tmp_path / 'whole.pth')
    return (tmp_path / 'whole.pth').read_bytes()


def kept(tmp_path: Path) -> list:
    return [p for p in (tmp_path / 'cache').rglob('*') if p.is_file()]


def then_right(server, tmp_path, whole) -> None:
    """After a failure nothing is kept, and the next call asks again."""
    assert not kept(tmp_path)
    path = fetch(server.url, 'key')
    assert path.read_bytes() == whole and kept(tmp_path) == [path]
    asked = server.asked
    assert fetch(server.url, 'key') == path and server.asked == asked


def test_a_short_answer_is_not_kept(server, tmp_path, whole):
    server.answers = [(whole[:1500], len(whole), 0), (whole, None, 0)]
    with pytest.raises(CheckpointError, match=f'1500 of {len(whole)} bytes came'):
        fetch(server.url, 'key')
    then_right(server, tmp_path, whole)


def test_a_damaged_answer_is_not_kept(server, tmp_path, whole):
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 64
    server.answers = [(bytes(damaged), None, 0), (whole, None, 0)]
    with pytest.raises(CheckpointError, match='checksum'):
        fetch(server.url, 'key')
    then_right(server, tmp_path, whole)


def test_the_page_of_a_captive_portal_is_not_kept(server, tmp_path, whole):
    server.answers = [(b'<html>Please log in</html>', None, 0), (whole, None, 0)]
    with pytest.raises(CheckpointError, match='no checkpoint, but a web page'):
        fetch(server.url, 'key')
    then_right(server, tmp_path, whole)


@pytest.mark.parametrize('rubbish', ['page', 'stump'])
def test_what_an_older_version_cached_is_fetched_again(server, tmp_path, whole, rubbish):
    server.answers = [(whole, None, 0)]
    path = fetch(server.url, 'key')
    path.write_bytes(b'<html>Please log in</html>' if rubbish == 'page' else whole[:1500])
    assert fetch(server.url, 'key').read_bytes() == whole and server.asked == 2


def test_a_server_that_stalls_is_given_up(server, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(download, 'PATIENCE', 0.5)
    server.answers = [(whole, None, 0.3), (whole, None, 0)]  # 4 KiB in 0.3 s
    began = time.monotonic()
    with pytest.raises(CheckpointError, match='bytes came in'):
        fetch(server.url, 'key')
    assert time.monotonic() - began < 10
    then_right(server, tmp_path, whole)


def test_a_silent_server_is_given_up(server, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(download, 'PATIENCE', 0.5)
    server.answers = [(whole, None, 3.0), (whole, None, 0)]
    with pytest.raises(CheckpointError, match='timed out'):
        fetch(server.url, 'key')
    then_right(server, tmp_path, whole)


def test_progress_is_shown(server, whole, monkeypatch):
    lines = []
    monkeypatch.setattr(download, 'print_log', lambda text, *args: lines.append(text))
    server.answers = [(whole, None, 0)]
    fetch(server.url, 'key')
    assert server.url in lines[0] and 'MiB' in lines[0]


# -- other addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'address, words',
    [
        ('http://[::1/x.pth', ['no valid URL']),
        ('http:///x.pth', ['names no host']),
        ('s3://bucket/x.pth', ['object store (s3)']),
        ('cluster:petrel://bucket/x.pth', ['object store']),
        ('torchvison://resnet50', ["'torchvison'", "'torchvision'"]),
        ('torchvision://resnet51', ['knows no such model', "'resnet50'"]),
        ('open-mmlab://resnet51', ['knows no such model']),
        ('ftp2://x/y.pth', ['names no place']),
        ('x' * 5000, ['cannot be a file']),
        (7, ['7', 'a path or a URL']),
    ],
)
def test_other_addresses_are_refused_by_what_they_are(address, words):
    with pytest.raises(CheckpointError) as caught:
        fetch(address, 'teacher.checkpoint')
    for word in ('teacher.checkpoint=', *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 800
    assert 'truncated' not in str(caught.value) and 'folder torchvision' not in str(caught.value)


@pytest.mark.parametrize('scheme', ['torchvision', 'open-mmlab', 'mmcls'])
def test_names_of_lists_are_downloaded(server, whole, monkeypatch, scheme):
    monkeypatch.setitem(download._CATALOGUES, scheme, lambda: dict(net=server.url))
    server.answers = [(whole, None, 0)]
    assert len(load_file(fetch(f'{scheme}://net', 'key'), 'key')['state_dict']['w']) == 4000


def test_the_lists_of_mmengine_know_their_networks():
    for scheme, name in (('torchvision', 'resnet50'), ('open-mmlab', 'detectron2/resnet50_caffe')):
        assert download._address(scheme, name, 'key').startswith('https://')


def test_files_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    path = tmp_path / 'a b.pth'
    path.write_bytes(b'x')
    for name in (path, str(path), '~/a b.pth', f'file://{path}', f'file://{tmp_path}/a%20b.pth'):
        assert fetch(name, 'key') == path
