"""What a head handed to its own loss: the labels of its own assigner, whatever that assigner is."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor

from ..taps import Recorder, TapError, TapPoint

WEIGHTS = ('weight', 'label_weight', 'label_weights')  # the last two of GHMC and SeesawLoss


class LossCall(NamedTuple):
    """One call of a loss module.

    Attributes:
        pred: the predictions, its first argument.
        target: the targets, its second argument: a tensor, or what else the loss takes.
        weight: its argument ``weight``, or what it calls so; None if it was not given.
        others: its other arguments, by name.
    """

    pred: Tensor
    target: Any
    weight: Tensor | None
    others: dict[str, Any]


def loss_calls(recorder: Recorder, point: TapPoint) -> list[LossCall]:
    """Every call of the loss module at ``point`` (with ``source='input'``) in this step, in order.

    Raises:
        TapError: the loss takes no predictions and targets.
    """
    module = recorder.model.get_submodule(point.path)
    signature = inspect.signature(module.forward)
    calls = []
    for args, kwargs in recorder.raw(point):
        given = dict(signature.bind(*args, **kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        names = list(given)
        if len(names) < 2:
            raise TapError(
                f'{point.path!r} ({type(module).__name__}) was called with {names} only: no '
                'targets to read the labels from. Use a loss without labels, such as KDLoss.'
            )
        pred, target = given.pop(names[0]), given.pop(names[1])
        weights = [given.pop(name) for name in WEIGHTS if name in given]
        weight = next((w for w in weights if w is not None), None)
        calls.append(LossCall(pred, target, weight, given))
    return calls
