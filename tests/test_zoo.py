"""Published weights by the word `zoo`, and checkpoints from where MMEngine reads them, too."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend
from mmengine.fileio.backends.registry_utils import prefix_to_backends
from mmengine.runner import CheckpointLoader
from toys import runner_config, toy_classifier

import mmkd_plugin
from mmkd_plugin.checkpoints.download import fetch
from mmkd_plugin.checkpoints.load import load_file
from mmkd_plugin.checkpoints.zoo import published_weights
from mmkd_plugin.cli.arguments import add_distillation, add_distillation_arguments
from mmkd_plugin.errors import CheckpointError
from mmkd_plugin.hooks.loaded_weights import read_safely
from mmkd_plugin.teacher import Teacher

MODEL = "model = dict(type='ToyClassifier', width=8)\n"
META = """
Collections: []
Models:
  - Name: small
    Config: configs/net/small.py
    Weights: {url}
  - Name: small-of-others
    Config: configs/net/small.py
    Weights: http://localhost/others.pth
  - Name: bare
    Config: configs/net/bare.py
  - Name: twice-a
    Config: configs/net/twice.py
    Weights: http://localhost/a.pth
  - Name: twice-b
    Config: configs/net/twice.py
    Weights: http://localhost/b.pth
  - Name: deep
    Config: configs/net/more%2B/deep.py
    Weights: http://localhost/deep.pth
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def weights(tmp_path) -> Path:
    """A file with a published name: it ends in a part of its hash."""
    file = tmp_path / 'toy.pth'
    torch.save(dict(state_dict=toy_classifier(1, width=8).state_dict()), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return file.rename(tmp_path / f'toy-{digest[:8]}.pth')


@pytest.fixture
def package(tmp_path, monkeypatch, weights) -> str:
    """An installed package, whose metafile tells of weights that lie beside it."""
    folder = tmp_path / 'toyzoo/.mim/configs/net'
    (folder / 'more+').mkdir(parents=True)
    for name in ('small', 'bare', 'twice', 'more+/deep', 'unlisted'):
        (folder / f'{name}.py').write_text(MODEL)
    (folder / 'metafile.yml').write_text(META.format(url=f'file://{weights}'))
    (tmp_path / 'toyzoo/__init__.py').touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return 'toyzoo'


def test_the_address_of_a_config(package, weights, tmp_path):
    own = f'file://{weights}'
    assert published_weights('toyzoo::net/small.py') == own
    path = tmp_path / 'toyzoo/.mim/configs/net/small.py'
    assert published_weights(path) == published_weights(Config.fromfile(path)) == own
    assert published_weights('toyzoo::net/more+/deep.py') == 'http://localhost/deep.pth'


@pytest.mark.parametrize(
    'config, words',
    [
        ('toyzoo::net/bare.py', ['no weights', 'toyzoo::net/bare.py', 'toyzoo::net/small.py']),
        ('toyzoo::net/unlisted.py', ['no weights for toyzoo::net/unlisted.py']),
        ('toyzoo::net/twice.py', ['more than one', 'twice-b: http://localhost/b.pth', 'the URL']),
        ('own.py', ['no metafile.yml beside own.py', "as 'mmdet::"]),
        (dict(type='ToyClassifier'), ['must be named', 'is dict here']),
    ],
)
def test_configs_without_published_weights(package, config, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.py').write_text(MODEL)
    with pytest.raises(ValueError) as caught:
        mmkd_plugin.distill(runner_config(tmp_path), config, 'zoo')
    assert all(word in str(caught.value) for word in ["checkpoint='zoo'", *words])
    with pytest.raises(FileNotFoundError, match="nearest in .*'net/small.py'"):
        published_weights('toyzoo::net/smal.py')


def test_a_teacher_is_loaded_from_the_zoo(package, weights):
    teacher = Teacher.build('toyzoo::net/small.py', 'zoo')
    wanted = toy_classifier(1, width=8).state_dict()
    state = teacher.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in wanted.items())


def test_flags_and_python_say_zoo(package, tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options')
    add_distillation_arguments(parser)
    cfg = runner_config(tmp_path)
    words = ['--teacher', 'toyzoo::net/small.py', '--teacher-checkpoint', 'zoo']
    add_distillation(cfg, parser.parse_args(words))
    assert cfg.custom_hooks[0].teacher.checkpoint == 'zoo'
    words[1] = 'toyzoo::net/bare.py'
    with pytest.raises(SystemExit, match='publishes no weights for toyzoo::net/bare.py'):
        add_distillation(runner_config(tmp_path), parser.parse_args(words))
    read = Config.fromfile(tmp_path / 'toyzoo/.mim/configs/net/small.py')
    made = mmkd_plugin.distill(runner_config(tmp_path), read, 'zoo')  # a dict has no file's name
    assert made.custom_hooks[0].teacher.checkpoint.startswith('file://')


def test_offline_the_address_is_told(package, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError('Temporary failure in name resolution')

    monkeypatch.setattr(urllib.request, 'urlopen', no_network)
    with pytest.raises(CheckpointError) as caught:
        Teacher.build('toyzoo::net/more+/deep.py', 'zoo')
    for word in ('http://localhost/deep.pth', 'Temporary failure', 'by hand and give its path'):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    'name, start',
    [
        ('mmdet::gfl/gfl_r50_fpn_1x_coco.py', 'mmdetection/v2.0/gfl/gfl_r50_fpn_1x_coco/'),
        ('mmdet::gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py', 'mmdetection/v2.0/gn%2Bws/'),
        ('mmpretrain::resnet/resnet18_8xb16_cifar10.py', 'mmclassification/v0/resnet/resnet18_'),
        (
            'mmseg::pspnet/pspnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
            'mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_40k_cityscapes/',
        ),
    ],
)
def test_the_packages_of_openmmlab_publish_theirs(name, start):
    pytest.importorskip(name.partition('::')[0])
    address = published_weights(name)
    assert address.startswith('https://') and start in address and address.endswith('.pth')


# -- object stores and model clouds --------------------------------------------------------------


class Store(BaseStorageBackend):
    """A file backend of MMEngine over a dict."""

    files: dict[str, bytes] = {}

    def get(self, filepath: str) -> bytes:
        return self.files[filepath]

    def get_text(self, filepath: str) -> str:
        return self.get(filepath).decode()


@pytest.fixture
def store(monkeypatch) -> dict[str, bytes]:
    monkeypatch.setattr(Store, 'files', {})
    monkeypatch.setitem(prefix_to_backends, 's3', Store)
    monkeypatch.setitem(prefix_to_backends, 'gs', Store)
    return Store.files


@pytest.mark.parametrize('start', ['s3://', 'cluster:s3://', 'gs://'])
def test_an_object_store_is_read_by_its_backend(store, start, weights, cache):
    url = f'{start}bucket/run/epoch_1.pth'
    store[url] = weights.read_bytes()
    path = fetch(url, 'teacher.checkpoint')
    assert path.is_relative_to(cache) and path.read_bytes() == weights.read_bytes()
    torch.save(dict(state_dict=dict(w=torch.ones(3))), weights)
    store[url] = weights.read_bytes()  # its user has written it anew
    assert load_file(fetch(url, 'key'), 'key')['state_dict']['w'].sum() == 3
    del store[url]
    with pytest.raises(CheckpointError, match=f"key='{start}.*could not be downloaded.*KeyError"):
        fetch(url, 'key')


def test_what_an_object_store_holds_is_read_safely(store, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / 'harm'), 'w'))

    torch.save(dict(state_dict=dict(w=torch.ones(2)), meta=Harm()), tmp_path / 'harmful.pth')
    torch.save(dict(state_dict=dict(w=torch.ones(2))), tmp_path / 'good.pth')
    for name in ('harmful', 'good'):
        store[f's3://bucket/{name}.pth'] = (tmp_path / f'{name}.pth').read_bytes()
    with read_safely():  # as load_from of the student
        loaded = CheckpointLoader.load_checkpoint('s3://bucket/good.pth', 'cpu')
        assert loaded['state_dict']['w'].tolist() == [1, 1]
        with pytest.raises((CheckpointError, pickle.UnpicklingError)):
            CheckpointLoader.load_checkpoint('s3://bucket/harmful.pth', 'cpu')
    assert not (tmp_path / 'harm').exists()


def test_a_model_cloud_is_read_by_its_client(weights, monkeypatch):
    model = types.SimpleNamespace(
        download=lambda path: Path(path).write_bytes(weights.read_bytes())
    )
    client = types.ModuleType('pavi')
    client.modelcloud = types.SimpleNamespace(get=dict(mine=model).__getitem__)
    monkeypatch.setitem(sys.modules, 'pavi', client)
    assert 'state_dict' in load_file(fetch('pavi://mine', 'key'), 'key')
    monkeypatch.setitem(sys.modules, 'pavi', None)
    with pytest.raises(CheckpointError, match='pavi.*by hand'):
        fetch('pavi://mine', 'key')


def test_every_scheme_of_mmengine_is_read_here(monkeypatch):
    """A new one of MMEngine's would be refused as a place that nobody knows."""
    monkeypatch.setattr(urllib.request, 'urlopen', lambda *a, **k: 1 / 0)
    known = [p for p in CheckpointLoader._schemes if p]
    assert {'pavi://', 'mmcls://', 'torchvision://'} <= set(known)
    for prefix in known:
        with pytest.raises((CheckpointError, ZeroDivisionError)) as caught:
            fetch(prefix.replace(r'(\S+\:)?', '') + 'bucket/none.pth', 'key')
        assert 'names no place' not in str(caught.value), prefix
