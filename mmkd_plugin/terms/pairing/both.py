"""In a step: what tensors at module paths and rows of heads have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import TapError


def check_count(what: str, connected: int, own: Sequence, theirs: Sequence) -> None:
    """Refuses a step that gives other numbers of levels or heads than were connected.

    Raises:
        TapError: with the numbers.
    """
    if not len(own) == len(theirs) == connected:
        raise TapError(
            f'{connected} {what} were connected, but this step gave '
            f'{len(own)} (student) and {len(theirs)} (teacher).',
            connected=connected,
            student=len(own),
            teacher=len(theirs),
        )


def refuse_gradient_free(tensor: Tensor, label: str) -> None:
    """Refuses a student tensor from which no gradient would reach the student."""
    if torch.is_grad_enabled() and not tensor.requires_grad:
        raise TapError(
            f'the student tensor at {label!r} carries no gradient, so the term could not '
            'train the student: the tap lies in a frozen or activation-checkpointed part. Tap a '
            'later module.',
            tap=label,
            gradient=0.0,
        )
