"""Where configs are found: paths, packages, bases; and the options for a teacher's config."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmkd_plugin.model_config import (
    existing_file,
    find_config,
    let_bases_be_found,
    load_model_config,
    read_config,
)

ROOT = Path(__file__).resolve().parents[1]
OURS = 'mmkd_plugin::classification/digits/resnet14_digits.py'
MODEL = "model = dict(type='Net', backbone=dict(depth=8), neck=None)\n"


def package(folder: Path, name: str, files: dict[str, str]) -> None:
    """An importable package in a folder, with files beside its code."""
    for file, text in {f'{name}/__init__.py': '', **files}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)


@pytest.mark.parametrize('where', ['checkout', 'wheel'])
def test_a_package_is_found_in_a_checkout_and_installed(where, tmp_path, monkeypatch):
    inside = 'configs' if where == 'checkout' else 'toymm/.mim/configs'
    package(tmp_path, 'toymm', {f'{inside}/net/small.py': MODEL})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_config('toymm::net/small.py') == tmp_path / inside / 'net/small.py'
    with pytest.raises(FileNotFoundError, match="config: .*nearest in .*: 'net/small.py'"):
        find_config('toymm::net/smal.py')


def test_a_config_of_ours_is_a_base_in_a_checkout(tmp_path):
    (tmp_path / 'own.py').write_text(f'_base_ = {OURS!r}\nown = 1\n')
    config = read_config(str(tmp_path / 'own.py'))
    assert config.model.head.num_classes == 10 and config.own == 1
    assert '_scope_' not in config.model


def test_our_own_configs_are_found_by_name():
    assert find_config(OURS) == ROOT / 'configs/classification/digits/resnet14_digits.py'
    assert load_model_config(OURS).model.head.num_classes == 10


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'teacher.py').write_text(MODEL)
    assert load_model_config('~/teacher.py').model.type == 'Net'


@pytest.mark.parametrize('name', ['', ' ', 'x' * 5000, '/tmp/' + 'x/' * 3000, 'a::' + 'b' * 5000])
def test_empty_and_endless_names_are_a_short_sentence(name):
    with pytest.raises(FileNotFoundError) as caught:
        find_config(name)
    assert 20 < len(str(caught.value)) < 900


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='teacher: .* is a folder, not a file'):
        existing_file(tmp_path, 'teacher')


# -- bases ---------------------------------------------------------------------------------------


def installed(folder: Path, name: str, configs: dict[str, str], monkeypatch) -> None:
    """A package as a wheel leaves it, for MMEngine to find."""
    files = {f'{name}/.mim/configs/{file}': text for file, text in configs.items()}
    index = {f'{name}/.mim/model-index.yml': 'Import:\n  - configs/metafile.yml\n'}
    package(folder, name, {**files, **index, f'{name}/.mim/configs/metafile.yml': 'Models: []\n'})
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_base_of_mmsegmentation_under_another_distribution(tmp_path, monkeypatch):
    """MMEngine looks for a distribution `mmsegmentation`, which OneDL's is not called."""
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'no-such-distribution')
    let_bases_be_found()
    assert MODULE2PACKAGE['mmseg'] == 'mmseg'
    installed(tmp_path, 'mmseg', {'net/base.py': MODEL}, monkeypatch)
    (tmp_path / 'own.py').write_text("_base_ = 'mmseg::net/base.py'\nmodel = dict(neck='FPN')\n")
    config = read_config(str(tmp_path / 'own.py'))
    assert config.model.neck == 'FPN' and config.model.backbone.depth == 8


def test_a_base_of_ours_keeps_the_scope_it_was_written_for(tmp_path, monkeypatch):
    """MMEngine gives its components the scope mmkd_plugin, in which there is no GFL."""
    monkeypatch.setitem(MODULE2PACKAGE, 'toyours', 'toyours')
    monkeypatch.setattr('mmkd_plugin.model_config.SCOPE', 'toyours')
    text = f"default_scope = 'mmdet'\nhooks = [dict(type='EMAHook')]\n{MODEL}"
    installed(tmp_path, 'toyours', {'net/base.py': text}, monkeypatch)
    own = tmp_path / 'own.py'
    own.write_text("_base_ = 'toyours::net/base.py'\nmodel = dict(backbone=dict(depth=14))\n")
    assert Config.fromfile(own).model._scope_ == 'toyours'
    config = read_config(str(own))
    assert config.default_scope == 'mmdet' and config.model.backbone.depth == 14
    assert '_scope_' not in config.model and '_scope_' not in config.hooks[0]


# -- contents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text, words',
    [
        ('model = dict(\n', ['SyntaxError']),
        ('a = 1\nmodel = dict(type=b)\n', ['NameError', 'line 2', "'b'"]),
        ("_base_ = 'gone.py'\n", ['gone.py']),
        (b'\x80\x81\x82', ['UnicodeDecodeError']),
    ],
)
def test_a_broken_file_is_named_with_its_line(text, words, tmp_path):
    file = tmp_path / 'broken.py'
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        read_config(str(file), "teacher's config")
    assert all(word in str(caught.value) for word in ["teacher's config", 'broken.py', *words])


@pytest.mark.parametrize(
    'options',
    [{'model.backbone.depth': 14, 'model.neck': 'FPN'}, dict(model=dict(backbone=dict(depth=14)))],
)
def test_options_change_a_teachers_config(options, tmp_path):
    (tmp_path / 'teacher.py').write_text(MODEL)
    config = load_model_config(tmp_path / 'teacher.py', options, 'teacher')
    assert config.model.backbone.depth == 14 and config.model.type == 'Net'


@pytest.mark.parametrize(
    'options, words',
    [
        ({'modle.backbone.depth': 1}, ["'modle.backbone.depth'", "'model.'"]),
        ({'train_cfg.max_epochs': 1}, ["'train_cfg.max_epochs'", 'nobody reads']),
        ({'model.type.x': 1}, ['teacher.cfg_options', 'model.type.x']),
        ('depth=1', ['teacher.cfg_options', "'depth=1'", 'must be a dict']),
    ],
)
def test_options_that_nobody_would_read_are_refused(options, words, tmp_path):
    (tmp_path / 'teacher.py').write_text(MODEL)
    with pytest.raises(ValueError) as caught:
        load_model_config(tmp_path / 'teacher.py', options, 'teacher')
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_config_without_a_model():
    with pytest.raises(ValueError, match="no 'model'"):
        load_model_config(dict(optimizer=1), None, 'teacher')
