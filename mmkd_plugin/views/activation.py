"""Whether a head's logits go through a softmax or through a sigmoid for each class."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor, nn

from ..rng import rng_kept
from ..taps.foreign import AnyModule

# Under which names a model or a head keeps the loss of its class logits.
_NAMES = ('loss_cls', 'loss_module', 'loss_decode', 'criterion', 'loss_fn', 'loss')
_FAR = 30.0  # a logit that leaves no doubt


def class_loss(owner: AnyModule) -> AnyModule | None:
    """The loss of the class logits that a head (or a model without heads) trains with.

    Returns:
        The module, of several in a list the first; None where the loss is no module.
    """
    for name in _NAMES:
        loss = getattr(owner, name, None)
        if isinstance(loss, nn.ModuleList) and len(loss):
            return loss[0]
        if isinstance(loss, nn.Module):
            return loss
    return None


def activation_of(loss: AnyModule, classes: int, device: torch.device | None = None) -> str | None:
    """What a loss on class logits does with them first.

    A loss says so by its ``use_sigmoid``, or a loss inside of it does (label smoothing). Any other
    is tried out on a copy, with rows of so many ``classes``: a softmax does not change when all
    logits of a row rise by the same number. A loss of sigmoids changes, and falls where every logit
    is far on the right side.

    Returns:
        ``'softmax'``, ``'sigmoid'``, or None if it is neither.
    """
    for module in loss.modules():
        told = getattr(module, 'use_sigmoid', None)
        if isinstance(told, bool):
            return 'sigmoid' if told else 'softmax'
    labels = torch.arange(4, device=device) % classes
    hot = nn.functional.one_hot(labels, classes).float()
    logits = torch.linspace(-1, 1, 4 * classes, device=device).view(4, classes)
    for target in (hot, labels):
        with contextlib.suppress(Exception), torch.no_grad(), rng_kept():
            plain, shifted, far = (
                _value(loss, x, target) for x in (logits, logits + 3, (2 * hot - 1) * _FAR)
            )
            if abs(plain - shifted) <= 1e-4 * max(1.0, abs(plain)):
                return 'softmax'
            return 'sigmoid' if far < min(plain, shifted) else None
    return None


def _value(loss: AnyModule, logits: Tensor, target: Tensor) -> float:
    return float(copy.deepcopy(loss)(logits, target).sum())  # a copy: some count their labels
