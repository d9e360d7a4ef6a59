"""What `import mmkd_plugin` needs: no detector's packages for who trains classifiers."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from importlib.machinery import ModuleSpec

MISSING = ('scipy', 'mmdet', 'mmcv', 'mmseg', 'mmpretrain', 'timm', 'sklearn')

class Missing:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split('.')[0] in MISSING else None
    def create_module(self, spec):
        raise ModuleNotFoundError(f'No module named {spec.name!r}', name=spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Missing())
import mmkd_plugin.losses, mmkd_plugin.views, mmkd_plugin.recipes
from mmkd_plugin.models import ImageClassifier
print(len(mmkd_plugin.views.view_names()))
"""


def test_the_package_imports_without_detection_packages():
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 5
