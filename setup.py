"""Packaging of mmkd_plugin.

Nothing is required hard, and that is on purpose: mmengine, mmcv and mmdet exist as two sets of
distributions that share their import names, and torch comes in many builds. ``pip install -e .``
into an environment that already trains detectors therefore changes none of its packages; what is
missing is explained at import by ``mmkd_plugin.compat``.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def read(name):
    """Text of a file beside this one; empty while the file does not exist."""
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.is_file() else ''


class BuildWithConfigs(build_py):
    """Puts configs, tools and index into wheels as ``mmkd_plugin/.mim``, as in OpenMMLab."""

    def run(self):
        """Builds the package, then copies; an editable install reads the checkout itself."""
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        for folder in ('configs', 'tools'):
            target = Path(self.build_lib, 'mmkd_plugin', '.mim', folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / folder, target, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', Path(self.build_lib, 'mmkd_plugin', '.mim'))


EXTRAS = {
    # the maintained fork; mmcv's ops need MMCV_WITH_OPS=1 pip install --no-build-isolation ...
    'onedl': [
        'onedl-mmengine>=0.10.8',
        'onedl-mmcv>=2.3',
        'onedl-mmdetection>=3.4',
        'imaug',  # imported by mmdet.datasets
        'opencv-python-headless',  # imported by mmengine, not declared there
        'pycocotools',
    ],
    # the official packages; mmdet 3.3 refuses mmcv >= 2.2
    'openmmlab': [
        'mmengine>=0.10',
        'mmcv>=2.0,<2.2',
        'mmdet>=3.2',
        'opencv-python<4.12',
        'numpy<2',
    ],
    # backbones of timm (BiT for FunMatch); classifiers of MMPreTrain; segmenters of
    # MMSegmentation; Shampoo
    'timm': ['timm'],
    'mmpretrain': ['onedl-mmpretrain'],
    'mmseg': ['onedl-mmsegmentation>=1.4'],
    # which versions fit which stack: docs/your-project.md
    'mmrotate': ['onedl-mmrotate>=1.2'],
    'mmpose': ['mmpose>=1.3'],
    'shampoo': ['pytorch-optimizer'],
    'demo': ['scikit-learn', 'scipy', 'matplotlib', 'rich', 'tensorboard'],
    'dev': ['pytest', 'pytest-xdist', 'pytest-timeout', 'ruff', 'mypy'],
    # what a test compares kinds of errors with; it skips without
    'tide': ['tidecv'],
    # the site reads the sources and imports nothing of them; ruff formats the signatures
    'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.5', 'mkdocstrings[python]>=0.29', 'ruff'],
}

setup(
    name='mmkd_plugin',
    version=re.search(r"__version__ = ['\"](.+?)['\"]", read('mmkd_plugin/__init__.py'))[1],
    description='Knowledge distillation for MMEngine: any teacher for any student, by config',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    project_urls={
        'MMEngine': 'https://github.com/open-mmlab/mmengine',
        'MMDetection': 'https://github.com/open-mmlab/mmdetection',
        'GDD (paper)': 'https://arxiv.org/abs/2401.08332',
    },
    keywords='knowledge distillation, object detection, MMDetection, MMEngine, PyTorch',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    install_requires=[],
    extras_require=EXTRAS,
    packages=find_packages(include=['mmkd_plugin', 'mmkd_plugin.*']),
    package_data={'mmkd_plugin': ['py.typed']},  # type checkers read the annotations
    py_modules=['mmkd'],
    entry_points={'console_scripts': ['mmkd = mmkd:main']},
    cmdclass={'build_py': BuildWithConfigs},
    zip_safe=False,
)
