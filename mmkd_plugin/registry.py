"""Child registries of MMEngine's, scope ``mmkd_plugin``.

In a config of any other scope a component is named ``mmkd_plugin.<Name>``.
"""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import FUNCTIONS as _FUNCTIONS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import METRICS as _METRICS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import OPTIMIZERS as _OPTIMIZERS
from mmengine.registry import Registry, root

from .checks import check_keys, nearest, shown, split_type

SCOPE = 'mmkd_plugin'

_ON_USE = dict(
    model=['mmkd_plugin.losses', 'mmkd_plugin.models'],
    hook=['mmkd_plugin.hooks'],
    dataset=['mmkd_plugin.datasets'],
    function=['mmkd_plugin.datasets'],
    metric=['mmkd_plugin.evaluation'],
    optimizer=['mmkd_plugin.optim'],
)


def _child(kind: str, parent: Registry) -> Registry:
    return Registry(kind, parent=parent, scope=SCOPE, locations=_ON_USE[kind])


MODELS = _child('model', _MODELS)
HOOKS = _child('hook', _HOOKS)
DATASETS = _child('dataset', _DATASETS)
FUNCTIONS = _child('function', _FUNCTIONS)
METRICS = _child('metric', _METRICS)
OPTIMIZERS = _child('optimizer', _OPTIMIZERS)

# The other kinds of parts have no component here. MMEngine looks for a registry of each in a
# config's default scope, and warns where there is none, or where it does not say what to import.
for _parent in list(vars(root).values()):
    if isinstance(_parent, Registry) and SCOPE not in _parent.children:
        Registry(_parent.name, parent=_parent, scope=SCOPE, locations=[SCOPE])


def build_loss(cfg: dict, where: str) -> Any:
    """Builds a loss of this package's ``MODELS`` whatever the default scope is.

    Args:
        cfg: ``dict(type='GDDLoss', ...)``; ``type`` may carry the scope or be the class itself.
        where: names the config entry in error messages.

    Raises:
        ValueError: if the type is missing or unknown, or an argument is not the loss's.
    """
    kind, kwargs = split_type(cfg, where, 'GDDLoss')
    kwargs.pop('_scope_', None)
    cls = kind
    own = [n for n in MODELS.module_dict if n.endswith('Loss')]
    if isinstance(kind, str):
        cls = MODELS.get(kind) if kind else None  # '' would be an assertion of the registry's
        if cls is None:
            raise ValueError(
                f'{where} names the loss {shown(kind)}, which is not registered; '
                f'{nearest(kind, own)}.'
            )
    if not hasattr(cls, 'connect'):  # such as mmdet's own losses on labels and boxes
        raise ValueError(
            f'{where}: {shown(kind)} is no distillation loss; valid: {", ".join(own)}.'
        )
    check_keys(kwargs, inspect.signature(cls).parameters, where)
    return cls(**kwargs)
