"""The maths at the ground: PyTorch and the standard library are all that it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmkd_plugin.functional
from mmkd_plugin.functional.compiling import is_compiling

FOLDER = Path(mmkd_plugin.functional.__file__).parent
CODE = """
import sys
from importlib.machinery import ModuleSpec

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmkd_plugin', 'mmengine', 'mmcv', 'mmdet'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Missing())
import pkgutil, importlib
import torch
import copied_out as F

for module in pkgutil.iter_modules(F.__path__):
    importlib.import_module(f'copied_out.{module.name}')
x = torch.tensor([[0.0, 1.0, 2.0]])
print(float(F.kl_divergence(x, x)), float(F.kl_divergence(x, x.flip(1))) > 0)
"""


def test_it_works_when_copied_out(tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / 'copied_out', ignore=shutil.ignore_patterns('__pycache__'))
    command = [sys.executable, '-c', CODE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ['0.0', 'True']


def test_is_compiling_outside_of_a_compiler():
    assert is_compiling() is False


@pytest.mark.skipif(sys.version_info >= (3, 12), reason='torch 2.1 compiles up to Python 3.11')
def test_is_compiling_is_seen_by_the_compiler_without_a_graph_break():
    @torch.compile(backend='eager', fullgraph=True)
    def branch(x):
        return x + 1 if is_compiling() else x - 1

    assert branch(torch.zeros(1)).item() == 1.0
