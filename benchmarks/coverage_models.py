"""Which packaged configs ``sweep.py`` trains, and how they are made small.

Only numbers change: a small detector walks through the same code as the real one.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

# Channels of all kinds, and what must fit them.
_WIDTHS = re.compile(r'(?:^|_)(?:channels?|dims?|feats|base_channels|chn)$')
_COUNTS = dict(num_queries=20, num_proposals=20, max_per_img=20, nms_pre=100, score_thr=0.0)
_HEADS = ('roi_head', 'bbox_head', 'mask_head', 'panoptic_head', 'semantic_head', 'decode_head')
_INNER = ('detector', 'student')
_LAYERS = ('encoder', 'decoder', 'transformer_decoder', 'transformer_encoder')
FIXED_SIZE = ('BatchFixedSizePad', 'BatchSyncRandomResize')
_SMALL = {'tiny': -1, 's': 0, 'm': 40, 'l': 90, 'x': 120, 'b': 60}


def configs_root() -> Path:
    """Folder of the configs that the installed mmdet ships."""
    import mmdet

    return Path(mmdet.__file__).parent / '.mim' / 'configs'


def cases() -> list[str]:
    """A config for each pair of detector and heads, and one at least for each folder.

    Of equal ones the lightest, by the numbers in its name.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for path in sorted(configs_root().glob('*/*.py')):
        name = f'{path.parent.name}/{path.name}'
        if path.parent.name != '_base_':
            model = _model(path)
            if model is not None:
                groups.setdefault((path.parent.name, pair_of(model)), []).append(name)
    homes: dict[str, str] = {}
    for (folder, pair), names in groups.items():
        if len(names) > len(groups.get((homes.get(pair, ''), pair), ())):
            homes[pair] = folder
    chosen = [(folder, pair) for pair, folder in homes.items()]
    for folder in dict.fromkeys(folder for folder, _ in groups):
        if folder not in homes.values():
            own = [key for key in groups if key[0] == folder]
            chosen.append(max(own, key=lambda key: len(groups[key])))
    return sorted(min(groups[key], key=_weight) for key in chosen)


def _model(path: Path) -> ConfigDict | None:
    try:
        return Config.fromfile(path).get('model')
    except (FileNotFoundError, OSError):  # a packaged config whose base is not packaged
        return None


def _weight(name: str) -> tuple:
    """By which configs of one kind are compared: the first long number is a depth, as a rule."""
    stem = Path(name).stem
    depth = re.search(r'\d{2,3}', stem)
    words = sum(_SMALL.get(word, 0) for word in re.split('[-_]', stem))
    return (int(depth.group()) if depth else 0) + words + 100 * ('swin' in stem), len(stem), stem


def type_name(node: Any) -> str:
    kind = node.get('type') if isinstance(node, dict) else None
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def pair_of(model: ConfigDict) -> str:
    """Detector and heads in a line: ``'MaskRCNN: StandardRoIHead (Shared2FCBBoxHead)'``."""
    told = []
    for name in _INNER:
        if isinstance(model.get(name), dict) and 'type' in model[name]:
            told.append(pair_of(model[name]))
    for name in _HEADS:
        head = model.get(name)
        if isinstance(head, dict):
            inner = [_first(head.get(part)) for part in ('bbox_head', 'mask_head')]
            parts = ', '.join(type_name(part) for part in inner if part)
            told.append(type_name(head) + (f' ({parts})' if parts else ''))
    return f'{type_name(model)}: {" + ".join(told) or "–"}'


def _first(node: Any) -> Any:
    return node[0] if isinstance(node, (list, tuple)) and node else node


def small_model(config: str, factor: int, image: int, classes: int | None = None) -> ConfigDict:
    """The model of a packaged config, its widths divided by ``factor``.

    Args:
        config: below the packaged configs.
        factor: 1 leaves the widths.
        image: height and width that batch augmentations are brought to.
        classes: number of classes; None leaves it.
    """
    model = copy.deepcopy(Config.fromfile(configs_root() / config).model)
    _shrink(model, factor, image)
    if classes is not None:
        _set_classes(model, classes)
    return model


def _set_classes(node: Any, classes: int) -> None:
    for child in _children(node):
        _set_classes(child, classes)
    if isinstance(node, dict) and 'num_classes' in node:
        node['num_classes'] = classes


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, (list, tuple)):
        yield from node


def _shrink(node: Any, factor: int, image: int) -> None:
    for child in _children(node):
        _shrink(child, factor, image)
    if not isinstance(node, dict):
        return
    kind = type_name(node)
    if kind in ('SyncBN', 'MMSyncBN'):
        node['type'] = 'BN'  # which does not train on a CPU
    if kind in FIXED_SIZE:
        _fix_size(node, image)
    _offline(node)
    for key in _LAYERS:
        part = node.get(key)
        if isinstance(part, dict) and part.get('num_layers', 0) > 2:
            part['num_layers'] = 2
    for key, count in _COUNTS.items():
        if isinstance(node.get(key), (int, float)) and node[key] > count:
            node[key] = count
    if factor > 1:
        _narrow(node, factor)


def _fix_size(node: dict, image: int) -> None:
    if 'size' in node:
        node['size'] = (image, image)
    else:
        node.update(random_size_range=(image, image), interval=1)


def _offline(node: dict) -> None:
    """Nothing is downloaded; configs of other models are where mmdet keeps them."""
    if isinstance(node.get('init_cfg'), dict) and type_name(node['init_cfg']) == 'Pretrained':
        node['init_cfg'] = None
    for key in ('teacher_ckpt', 'pretrained'):
        if isinstance(node.get(key), str):
            node[key] = None
    teacher = node.get('teacher_config')
    if isinstance(teacher, str):
        node['teacher_config'] = str(configs_root() / teacher.removeprefix('configs/'))


def _narrow(node: dict, factor: int) -> None:
    for key, default in _defaults(node).items():
        if key not in node and _divided(default, factor) != default:
            node[key] = default
    for key, value in list(node.items()):
        if isinstance(key, str) and _WIDTHS.search(key):
            node[key] = _divided(value, factor)
    if isinstance(node.get('widen_factor'), (int, float)):
        node['widen_factor'] = node['widen_factor'] / factor


def _divided(value: Any, factor: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_divided(item, factor) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 32:
        return value // factor if value % factor == 0 else value
    return value


def _defaults(node: dict) -> dict[str, Any]:
    """Widths that a class takes for granted, by argument."""
    kind = node.get('type')
    cls = kind if isinstance(kind, type) else _class(kind) if isinstance(kind, str) else None
    return _default_widths(cls) if isinstance(cls, type) else {}


@cache
def _class(name: str) -> type | None:
    from mmdet.registry import MODELS, TASK_UTILS

    return MODELS.get(name) or TASK_UTILS.get(name)


@cache
def _default_widths(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        for parameter in parameters:
            if _WIDTHS.search(parameter.name) and parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found
