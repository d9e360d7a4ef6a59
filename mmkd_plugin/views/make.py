"""From a config entry to the view that reads a model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from ..checks import check_keys, nearest, shown
from ..errors import placed
from ..taps import TapConfig, TapError
from ..taps.partial_forward import reads_text
from .base import LogitView
from .registry import VIEWS, find_view, fitting
from .tap_view import TapView


def make_view(
    config: TapConfig,
    model: nn.Module,
    needs: Sequence[str] = (),
    where: str = 'tap',
    role: str = 'student',
) -> TapView | LogitView:
    """The view of a config entry: a view's name, ``dict(view=name)``, or whatever a tap may be.

    Args:
        config: the entry.
        model: the model to look at.
        needs: what the loss wants beside the tensors.
        where: names the entry in messages.
        role: ``'student'`` or ``'teacher'``, which of them the model is.

    Raises:
        TapError: no such view or module, or no view of that name fits the model.
    """
    name = config
    if isinstance(config, dict) and 'view' in config:
        check_keys(config, ['view'], f'{where} (a view is read whole)')
        name = config['view']
        if not isinstance(name, str) or name not in VIEWS:
            raise TapError(f'{where}: there is no view {shown(name)}; {nearest(name, VIEWS)}.')
    if not isinstance(name, str) or name not in VIEWS:
        try:
            return TapView(config, model, needs, where)
        except ValueError as error:
            meant = _meant(config)
            if meant is None:
                raise
            raise TapError(
                f'{error} Did you mean the view {meant!r}? A view is read whole and stands alone, '
                f'without levels or lists: {meant!r}.'
            ) from None
    found = find_view(name, model)
    if found is not None:
        build: Any = found[0]
        body = found[1]
        place = [where] if len(inspect.signature(build).parameters) > 2 else []
        with placed(where):
            view = build(body.module, needs, *place)
        view.within = body.path
        _check_features(view, body.module, needs, f'{where}={name!r}')
        return view
    if reads_text(model):
        raise TapError(
            f'{where}: {type(model).__name__} reads text beside the images: the columns of its '
            f'logits are words of a prompt, no classes, and the view {name!r} does not serve it. '
            "Distil features instead, such as student='neck'."
        )
    kinds = ', '.join(cls.__name__ for cls in VIEWS[name])
    others = [n for n in fitting(model, student=role == 'student') if n != name]
    hint = f' Views that fit it: {", ".join(others)}.' if others else ''
    raise TapError(
        f'{where}: no view {name!r} fits {type(model).__name__} (there are: {kinds}).{hint} Tap a '
        'module path instead, or write a view for it: a LogitView with '
        f"@register_view('{name}'), see mmkd_plugin/views/classifier.py."
    )


def make_logit_view(
    name: str,
    model: nn.Module,
    needs: Sequence[str] = (),
    where: str = 'tap',
    role: str = 'student',
) -> LogitView:
    """:func:`make_view` of a view's name."""
    return cast(LogitView, make_view(name, model, needs, where, role))


def _check_features(view: LogitView, model: nn.Module, needs: Sequence[str], what: str) -> None:
    if 'features' not in needs or view.teacher_only:
        return
    for spec in view.specs(model):
        if spec.feature_dim is None:
            raise TapError(
                f'{what}: the loss needs what the classification layer of {spec.label!r} reads, '
                f'which {type(view).__name__} does not give. Take a loss without features, such as '
                'KDLoss, or let the view set HeadSpec.feature_dim and Level.features.'
            )


def _meant(config: TapConfig) -> str | None:
    """The view whose name, or nearly so, stands where a module path was read."""
    if isinstance(config, dict):
        config = list(config.values())
    for item in config if isinstance(config, (list, tuple)) else [config]:
        if isinstance(item, (dict, list, tuple)):
            found = _meant(item)
        else:
            found = next(iter(difflib.get_close_matches(str(item), VIEWS, n=1, cutoff=0.8)), None)
        if found:
            return found
    return None
