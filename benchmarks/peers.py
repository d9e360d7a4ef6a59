"""The same pair distilled by mmrazor, for ``overhead.py --peer mmrazor``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from mmengine.registry import MODELS, DefaultScope, Registry
from torch import Tensor, nn

from mmkd_plugin.losses import DistillLoss, FeatureLoss
from mmkd_plugin.registry import build_loss

NAMES = ('mmrazor',)
_ALGORITHMS = 'mmrazor.models.algorithms.distill.configurable'
_CLASSES = dict(
    SingleTeacherDistill='single_teacher_distill', FpnTeacherDistill='fpn_teacher_distill'
)
# Packages that these import from, and what is defined where in them.
_PARTS = (
    ('mmrazor.models.utils', 'misc', 'add_prefix'),
    ('mmrazor.models.task_modules', 'recorder', 'RecorderManager'),
    ('mmrazor.models.task_modules', 'delivery', 'DistillDeliveryManager'),
    ('mmrazor.models.distillers', 'configurable_distiller', 'ConfigurableDistiller'),
)


class PeerLoss(nn.Module):
    """A loss of ours as mmrazor takes losses, so that both train the same.

    Args:
        loss: config of a loss on feature maps.
    """

    def __init__(self, loss: dict[str, Any]) -> None:
        super().__init__()
        self.loss: DistillLoss = build_loss(loss, 'loss')

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher)


def build_mmrazor(
    build: Callable[[], tuple[nn.Module, nn.Module]],
    loss: dict[str, Any],
    paths: list[tuple[str, str]],
) -> dict[str, nn.Module]:
    """Both of mmrazor's algorithms with one teacher, set up as its recipes do.

    Args:
        build: makes a student and its teacher.
        loss: config of the term's loss.
        paths: of the tapped modules of student and teacher, level by level.

    Returns:
        By the name of the class: a model whose ``forward(..., mode='loss')`` gives the losses of
        student and term.

    Raises:
        SystemExit: mmrazor is not installed or refuses the versions that are, or the loss is none
            on feature maps.
    """
    if not isinstance(PeerLoss(loss).loss, FeatureLoss):
        raise SystemExit(f'--peer compares losses on feature maps; {loss["type"]} is none.')
    classes = _import_mmrazor()
    MODELS.register_module(name='PeerLoss', module=PeerLoss, force=True)
    records = [
        {f'level{i}': dict(type='ModuleOutputs', source=pair[k]) for i, pair in enumerate(paths)}
        for k in (0, 1)
    ]
    names = {f'loss_{i}': f'level{i}' for i in range(len(paths))}
    sides = dict(student=True, teacher=False)
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=records[0],
        teacher_recorders=records[1],
        distill_losses={name: dict(type='PeerLoss', loss=loss) for name in names},
        loss_forward_mappings={
            name: {side: dict(recorder=level, from_student=own) for side, own in sides.items()}
            for name, level in names.items()
        },
    )
    made = {}
    for name, algorithm in classes.items():
        student, teacher = build()
        with DefaultScope.overwrite_default_scope('mmrazor'):
            made[name] = algorithm(distiller=distiller, teacher=teacher, architecture=student)
    return made


def _import_mmrazor() -> dict[str, Any]:
    try:
        importlib.import_module('mmrazor')
    except ImportError as error:
        raise SystemExit(f'--peer mmrazor: {error}. pip install mmrazor') from None
    except AssertionError as error:  # of its own check of versions
        raise SystemExit(f'--peer mmrazor: {error}') from None
    _import_parts()
    return {
        name: getattr(importlib.import_module(f'{_ALGORITHMS}.{module}'), name)
        for name, module in _CLASSES.items()
    }


def _import_parts() -> None:
    """What the two classes need of mmrazor. Its package imports quantisation with them, which works
    with none but old versions of PyTorch."""
    for package in (_ALGORITHMS, *(package for package, _, _ in _PARTS)):
        for depth in range(2, package.count('.') + 2):
            _bare('.'.join(package.split('.')[:depth]))
    registries = importlib.import_module('mmrazor.registry')
    for registry in (x for x in vars(registries).values() if isinstance(x, Registry)):
        registry._imported = True  # else it imports the whole package on its first use
    for package, module, name in _PARTS:
        found = importlib.import_module(f'{package}.{module}')
        setattr(sys.modules[package], name, getattr(found, name))


def _bare(name: str) -> None:
    """A package of mmrazor without what its ``__init__`` imports."""
    if name not in sys.modules:
        module = ModuleType(name)
        inner = name.split('.')[1:]
        module.__path__ = ['/'.join([path, *inner]) for path in sys.modules['mmrazor'].__path__]
        sys.modules[name] = module
