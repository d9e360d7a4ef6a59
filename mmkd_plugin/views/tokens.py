"""Tokens of a vision transformer as a map: they are the places of a square grid, row by row."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..checks import shown
from ..taps import TapError
from ..taps.foreign import AnyModule

_KEY = 'tokens'


def token_map(tokens: Tensor, extra: int, label: str) -> Tensor:
    """Tokens (N, extra + h h, C) as a map (N, C, h, h).

    Args:
        tokens: of one layer.
        extra: how many come first that belong to no place, such as the class token.
        label: names the layer in messages.

    Raises:
        TapError: another shape, or tokens that make no square.
    """
    if tokens.dim() != 3 or tokens.shape[1] <= extra:
        raise TapError(
            f'{label!r} gave {tuple(tokens.shape)}, no tokens (images, tokens, channels) of which '
            f'{_KEY}={extra} belong to no place.'
        )
    places = tokens.shape[1] - extra
    side = math.isqrt(places)
    if side * side != places:
        raise TapError(
            f'{label!r} gave {places} tokens beside the {extra} that belong to no place, and they '
            'make no square. Train on square images, or let the backbone give maps (MMPreTrain: '
            "out_type='featmap')."
        )
    return tokens[:, extra:].transpose(1, 2).unflatten(2, (side, side))


def split_tokens(config: Any, where: str) -> tuple[Any, int | None]:
    """A tap without its key ``tokens``, and the value of that key; None where there is none.

    Raises:
        TapError: a value that is no number of tokens.
    """
    if not isinstance(config, dict) or _KEY not in config:
        return config, None
    extra = config[_KEY]
    if not isinstance(extra, int) or isinstance(extra, bool) or extra < 0:
        raise TapError(
            f'{where}: {_KEY}={shown(extra)} must be how many tokens come first that belong to no '
            'place: 1 for a class token, 0 for none.'
        )
    return {key: value for key, value in config.items() if key != _KEY}, extra


def last_tokens(backbone: AnyModule) -> dict | None:
    """The tap of the last layer of a transformer that gives no map itself (MMPreTrain's
    ``out_type`` other than ``'featmap'``); None for all others."""
    out_type, layers = getattr(backbone, 'out_type', None), getattr(backbone, 'layers', None)
    if not isinstance(out_type, str) or out_type == 'featmap' or not layers:
        return None
    extra = getattr(backbone, 'num_extra_tokens', 0)
    return dict(path=f'backbone.layers.{len(layers) - 1}', tokens=extra)
