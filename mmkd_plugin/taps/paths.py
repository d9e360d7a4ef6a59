"""Where to listen in a model.

A *tap* names module outputs (or inputs) by path; it never changes the model. Paths are those of
``model.named_modules()``; ``*`` stands for one path segment and ``**`` for any number of them::

    'neck.fpn_convs.*.conv'                         four modules, four levels
    'neck'                                          one level per map of its tuple output
    'bbox_head.gfl_cls'                             one module called once per level
    dict(path='backbone', levels=[-1])              only the last map of the tuple
    dict(path='bbox_head.gfl_cls', source='input')  what the module was given
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..checks import check_keys, near_matches, nearest, shown
from ..errors import TapError

TapConfig = str | dict | Sequence[str | dict]

_TAP_KEYS = ('path', 'source', 'levels', 'calls')


@dataclass(frozen=True)
class TapPoint:
    """One module to listen to, and what to keep of each of its calls.

    Attributes:
        path: module path in the model, without wildcards.
        source: ``'output'`` or ``'input'``.
        levels: indices into the tensors of one call; ``None`` keeps all.
        calls: indices of the calls of one step; ``None`` keeps all.
    """

    path: str
    source: str = 'output'
    levels: tuple[int, ...] | None = None
    calls: tuple[int, ...] | None = None


def _segments_match(pattern: Sequence[str], path: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == '**':
        return any(_segments_match(pattern[1:], path[i:]) for i in range(len(path) + 1))
    return (
        bool(path)
        and fnmatch.fnmatchcase(path[0], pattern[0])
        and _segments_match(pattern[1:], path[1:])
    )


def match_paths(model: nn.Module, pattern: str, where: str) -> list[str]:
    """Module paths that match ``pattern``, in the model's own order.

    Raises:
        TapError: if nothing matches; lists the nearest valid paths.
    """
    modules = dict(model.named_modules())
    names = [name for name in modules if name]
    if not any(c in pattern for c in '*?['):
        found = [pattern] if pattern in names else []
    else:
        found = [n for n in names if _segments_match(pattern.split('.'), n.split('.'))]
        if pattern.endswith('**'):  # '**' alone must not tap a module and all of its insides
            found = [n for n in found if next(modules[n].children(), None) is None]
    if not found:
        raise TapError(
            f'{where}: no module of {type(model).__name__} matches {shown(pattern)}; '
            f'{_nearest_path(pattern, names)} tools/inspect_model.py (mmkd inspect) lists all '
            'places.',
            pattern=pattern,
            nearest=near_matches(pattern, names),
        )
    return found


def _nearest_path(pattern: str, names: list[str]) -> str:
    """Compares within the same parent first, so that a slip in the last part finds its siblings."""
    parts = pattern.split('.')
    for depth in range(len(parts) - 1, -1, -1):
        parent = '.'.join(parts[:depth])
        if parent and parent not in names:
            continue
        inside = [n for n in names if not parent or n.startswith(parent + '.')]
        siblings = [n for n in inside if n.count('.') == depth]
        hint = nearest('.'.join(parts[: depth + 1]), siblings) if siblings else ''
        close = nearest(pattern, inside) if inside else ''
        best = close if close.startswith('nearest') else hint
        if best:
            return best + '.'
    return nearest(pattern, names) + '.'


def parse_tap(config: TapConfig, model: nn.Module, where: str) -> list[TapPoint]:
    """Resolves a tap of a config on a model.

    Args:
        config: a path, a dict with ``path``, ``source``, ``levels``, ``calls``, or a list of these.
        model: the model whose modules are meant.
        where: names the config entry in error messages.

    Returns:
        The points in the order in which their tensors become levels.

    Raises:
        TapError: wrong type or key, unknown path (nearest names are listed).
    """
    if isinstance(config, str):
        config = dict(path=config)
    if isinstance(config, dict):
        check_keys(config, _TAP_KEYS, where)
        if not isinstance(config.get('path'), str):
            raise TapError(
                f"{where} needs a 'path' (module path as a string), got {shown(config)}."
            )
        source = config.get('source', 'output')
        if source not in ('output', 'input'):
            raise TapError(f"{where}: source is 'output' or 'input', not {shown(source)}.")
        pick = {k: _indices(config.get(k), k, where) for k in ('levels', 'calls')}
        return [
            TapPoint(path, source, **pick) for path in match_paths(model, config['path'], where)
        ]
    if isinstance(config, (list, tuple)) and config:
        return [point for item in config for point in parse_tap(item, model, where)]
    raise TapError(
        f'{where} is a module path, a dict with a path, or a list of these, not {shown(config)}.'
    )


def _indices(value: Any, key: str, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, (list, tuple))
        or not value
        or not all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    ):
        raise TapError(
            f'{where}: {key}={shown(value)} must be a list of whole numbers, such as '
            f'{key}=[0, -1] for the first and the last, or None for all.'
        )
    return tuple(value)


def is_loss_input(point: TapPoint) -> bool:
    """Whether it is what a head hands to its own loss, in which views look for labels."""
    return point.source == 'input' and point.path.rpartition('.')[2].startswith('loss_')


def refuse_checkpointed(model: nn.Module, path: str, wrapped: Sequence[str], where: str) -> None:
    """Refuses a tap strictly inside an activation-checkpointed module.

    There the first forward records no gradient, so the term would silently train nothing; at the
    boundary (the output of the module itself) everything is as usual.

    Args:
        model: the student.
        path: module path of the tap.
        wrapped: modules of the config's ``activation_checkpointing``.
        where: names the term in the message.

    Raises:
        TapError: naming the checkpointed module, whose own output can be tapped instead.
    """
    parts = path.split('.')
    for length in range(1, len(parts)):
        parent = '.'.join(parts[:length])
        module = model.get_submodule(parent)
        # Backbones hold ``with_cp`` too, but it is their innermost owners that act on it.
        acts = getattr(module, 'with_cp', False) and not any(
            hasattr(m, 'with_cp') for m in module.modules() if m is not module
        )
        if acts or parent in wrapped:
            raise TapError(
                f'{where}: the student tap {path!r} lies inside {parent!r}, which uses '
                'activation checkpointing: no gradient would reach the student from '
                f'there. Tap {parent!r} itself, or switch checkpointing off for it.',
                tap=path,
                checkpointed=parent,
            )
