"""What fits what: refusals of a loss, a tap or a view that would compare the wrong things."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import TapError
from ..losses.base import DistillLoss
from ..views import TapView
from ..views.activation import activation_of, class_loss


def refuse_sigmoid_head(loss: DistillLoss, tap: TapView, model: nn.Module, where: str) -> None:
    """Refuses a softmax over the columns of a head that has a sigmoid for each class.

    Raises:
        TapError: unless the loss was told ``use_sigmoid``.
    """
    if getattr(loss, 'use_sigmoid', True) is not None:
        return
    for point in tap.points:
        names = point.path.split('.')
        for depth in range(len(names) + 1):  # a model may have no head, and a loss of its own
            owner = model.get_submodule('.'.join(names[:depth]))
            if _has_sigmoids(owner):
                raise TapError(
                    f'{where}: {point.path!r} belongs to {type(owner).__name__}, whose loss has a '
                    f'sigmoid for each class, and {type(loss).__name__} would take a softmax over '
                    "the classes. Take the view student='cls_logits', which follows the head, or "
                    'say use_sigmoid=True in the loss.'
                )


def _has_sigmoids(owner: nn.Module) -> bool:
    found = class_loss(owner)
    if found is None:
        return False
    classes = getattr(owner, 'num_classes', None)
    classes = classes if isinstance(classes, int) and classes > 0 else 2
    tensor = next(owner.parameters(), None)
    device = None if tensor is None else tensor.device
    return activation_of(found, classes, device) == 'sigmoid'


def refuse_gradient_free(tensor: Tensor, label: str, where: str) -> None:
    """Refuses a student tensor from which no gradient would reach the student."""
    if torch.is_grad_enabled() and not tensor.requires_grad:
        raise TapError(
            f'{where}: the student tensor at {label!r} carries no gradient, so the term could not '
            'train the student: the tap lies in a frozen or activation-checkpointed part. Tap a '
            'later module.'
        )
