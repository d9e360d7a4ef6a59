"""From a config and a checkpoint to a network with its weights."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from ..checkpoints import fit as ckpt
from ..checkpoints.zoo import ZOO, published_weights
from ..compat import check_package, check_stack
from ..rng import rng_kept
from ..taps.foreign import AnyModule


def build_model(config: Config) -> nn.Module:
    """Builds ``config.model`` as a Runner would, with random weights, drawing no random number
    of the caller's and leaving the default scope as it was."""
    model = copy.deepcopy(config.model)
    if isinstance(model, nn.Module):
        return model
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    scope = config.get('default_scope') or _current_scope() or 'mmengine'
    with rng_kept(), DefaultScope.overwrite_default_scope(scope):
        _import_scope(scope)
        return ROOT_MODELS.build(ConfigDict(model))


def draw_weights(model: AnyModule) -> None:
    """Initialises a model as a Runner does, but downloads nothing: some parameters (the level
    embeddings of Deformable DETR) are mere memory before, not numbers."""
    for module in model.modules():
        cfgs = getattr(module, 'init_cfg', None) or []
        cfgs = [cfgs] if isinstance(cfgs, dict) else cfgs
        if any(cfg['type'] in ('Pretrained', PretrainedInit) for cfg in cfgs):
            module.init_cfg = None
    if hasattr(model, 'init_weights'):
        with rng_kept():
            model.init_weights()


def load_weights(
    model: AnyModule, checkpoint: str, config: Any, trust: bool, allow_partial: bool
) -> tuple[Any, str]:
    """Puts the teacher's weights into its network.

    Returns:
        The names of the classes that it was trained on, if the file tells them, and the file's
        SHA-256.

    Raises:
        CheckpointError: missing, damaged, foreign or incomplete checkpoint.
    """
    key = 'teacher.checkpoint'
    if checkpoint == ZOO:
        checkpoint = published_weights(config)
    path = ckpt.fetch(checkpoint, key, _how_to_get(config))
    loaded, digest = ckpt.read_file(path, key, trust)
    state = ckpt.state_dict_of(loaded, f'{key}={str(path)!r}')
    adapt = getattr(model, 'adapt_state_dict', None)
    if adapt is not None:  # a classifier reads torchvision's files, too
        state = adapt(state)
    ckpt.load_all(model, state, str(path), allow_partial)
    return ckpt.classes_of(loaded), digest


def _how_to_get(config: Any) -> str:
    """Where a teacher's weights come from, if the config is a file."""
    if not isinstance(config, (str, Path)):
        return ''
    return (
        f'Train the teacher first (python tools/train.py {config}), or name its file '
        '(teacher.checkpoint in the config, --teacher-checkpoint of tools/train.py).'
    )


def _current_scope() -> str | None:
    current = DefaultScope.get_current_instance()
    return current.scope_name if current else None


# What each project's models import beside MMEngine; MMPreTrain runs without compiled operators.
_SCOPE_NEEDS = dict(mmdet=('mmcv', 'mmdet'), mmseg=('mmcv', 'mmseg'), mmpretrain=())


def _import_scope(scope: str) -> None:
    """Lets a package register its modules, without becoming the default scope for good."""
    check_package(scope)
    if scope in _SCOPE_NEEDS:
        check_stack(('mmengine', *_SCOPE_NEEDS[scope]))
        utils = importlib.import_module(f'{scope}.utils')
        utils.register_all_modules(init_default_scope=False)
