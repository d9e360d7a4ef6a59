"""Published weights of a config: what ``checkpoint='zoo'`` stands for.

Packages of OpenMMLab carry a ``metafile.yml`` in each folder of configs. It names the address of
the weights that were trained with a config.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from mmengine.config import Config

from ..checks import shortened
from ..model_config import find_config

ZOO = 'zoo'
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)  # many times faster, where it is built


def published_weights(config: Any, what: str = "teacher's config") -> str:
    """The address of the weights that the package of a config publishes for it.

    The config is a ``'package::path'``, the path of one in a checkout, or the Config that was read
    from it. ``what`` says whose it is, for messages.

    Raises:
        ValueError: no weights are published for it; configs with similar names that have some are
            listed.
        FileNotFoundError: there is no such config.
    """
    name = config.filename if isinstance(config, Config) else config
    if not isinstance(name, (str, Path)):
        raise ValueError(
            f'checkpoint={ZOO!r} is the file that a package publishes for one of its configs; the '
            f"{what} must be named for that, as 'mmdet::gfl/gfl_r50_fpn_1x_coco.py', and is "
            f'{shortened(type(name).__name__)} here.'
        )
    name = str(name)
    file = find_config(name, what).absolute()
    metafile, models = _models(file)
    if metafile is None:
        raise ValueError(
            f'checkpoint={ZOO!r}: no metafile.yml beside {shortened(name)} tells of published '
            "weights. Name a config of a package, as 'mmdet::gfl/gfl_r50_fpn_1x_coco.py', or give "
            'the file or its URL.'
        )
    inside = file.relative_to(metafile.parent).as_posix()
    whole = f'/{metafile.parent.name}/{inside}'
    found = {
        str(model.get('Name')): model['Weights']
        for model in models
        if _config_of(model) == inside or f'/{_config_of(model)}'.endswith(whole)
    }
    return _choose(found, file.stem, name, models)


def _config_of(model: dict) -> str:
    return unquote(str(model.get('Config', '')))


def _models(file: Path) -> tuple[Path | None, list[dict]]:
    """The metafile that a config belongs to, and its models with weights."""
    for folder in list(file.parents)[:3]:
        for metafile in sorted(folder.glob('metafile.y*ml')):
            content = yaml.load(metafile.read_text(encoding='utf-8'), _LOADER) or {}
            models = content.get('Models', []) if isinstance(content, dict) else content
            return metafile, [m for m in models or [] if isinstance(m, dict) and m.get('Weights')]
        if folder.name == 'configs':
            break
    return None, []


def _choose(found: dict[str, Any], stem: str, name: str, models: list[dict]) -> str:
    """The one address; third parties have trained several models with some configs."""
    if stem in found:
        found = {stem: found[stem]}
    if len(found) == 1 and isinstance(weights := next(iter(found.values())), str):
        return weights
    if found:
        listed = '; '.join(f'{model}: {weights}' for model, weights in found.items())
        raise ValueError(
            f'checkpoint={ZOO!r}: more than one file is published for {shortened(name)} '
            f'({listed}). Give the URL of one of them.'
        )
    package = name.partition('::')[0] + '::' if '::' in name else ''
    others = {Path(_config_of(model)).stem: _config_of(model) for model in models}
    near = difflib.get_close_matches(stem, others, n=4, cutoff=0.3) or sorted(others)[:4]
    names = ', '.join(package + others[n].removeprefix('configs/') for n in near)
    hint = f'Take a config that has some ({names}), or give' if names else 'Give'
    raise ValueError(
        f'checkpoint={ZOO!r}: its package publishes no weights for {shortened(name)}. {hint} the '
        'file or its URL.'
    )
