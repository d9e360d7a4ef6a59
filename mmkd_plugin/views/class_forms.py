"""Class vectors of one form of head as logits of another: sigmoids, a softmax, with background."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from .predictions import HeadSpec


def log_odds(logits: Tensor) -> Tensor:
    """Sigmoid logits of softmax probabilities: ``log(p / (1 - p))`` of each class.

    With ``p = softmax(z)`` these are ``z_c - log sum_{j != c} exp(z_j)``. Where c is not the
    largest, the sum of the others is far from zero and is the whole sum less one; for the largest
    it is summed anew, so that nothing cancels.

    Args:
        logits: (N, C), C of 2 or more.

    Returns:
        (N, C).

    >>> z = torch.tensor([[2.0, 0.5, -1.0]])
    >>> torch.allclose(log_odds(z).sigmoid(), z.softmax(1))
    True
    """
    top, best = logits.max(1, keepdim=True)
    others = torch.log((logits - top).exp().sum(1, keepdim=True) - (logits - top).exp())
    without = logits.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True) - top
    return logits - top - others.scatter(1, best, without)


def independent(logits: Tensor, form: HeadSpec) -> Tensor:
    """How sure a head is of each class on its own: sigmoid logits (N, K), without background.

    Exact for every form: a sigmoid's logits are these, a softmax's become log odds.
    """
    own = log_odds(logits) if form.activation == 'softmax' else logits
    return own[:, : form.num_classes]


def in_form(logits: Tensor, form: HeadSpec, activation: str, background: bool) -> Tensor:
    """Class vectors of a teacher as logits of a head of another form.

    Equal forms are left as they are. Sigmoids of a softmax are its log odds, which is exact. A
    softmax of sigmoids is the distribution of the class if at most one class is there: with
    probabilities p of the classes, each on its own, the odds of class c against no class at all are
    ``p_c / (1 - p_c)``, so that the logits are the sigmoids' and 0 is that of the background. A
    column for background beside sigmoids is how sure it is that no class is there, each on its own.

    Args:
        logits: (N, C) in the teacher's form.
        form: the teacher's.
        activation: of the other head.
        background: whether the other head has a column for it.

    Returns:
        (N, K), or (N, K + 1) with background.

    >>> form = HeadSpec('teacher', 'dense', 'sigmoid', num_classes=2)
    >>> in_form(torch.tensor([[1.0, -2.0]]), form, 'softmax', True)
    tensor([[ 1., -2.,  0.]])
    """
    if (form.activation, form.background) == (activation, background):
        return logits
    if form.activation == 'softmax' and form.background:
        odds = logits if activation == 'softmax' else log_odds(logits)
        return odds if background else odds[:, : form.num_classes]
    known = independent(logits, form)
    if not background:
        return known
    if activation == 'softmax':
        return torch.cat([known, known.new_zeros((len(known), 1))], dim=1)
    return torch.cat([known, _nobody(known)], dim=1)


def _nobody(known: Tensor) -> Tensor:
    """Sigmoid logit (N, 1) of no class being there, for sigmoid logits (N, K) of all classes."""
    log_none = nnf.logsigmoid(-known).sum(1, keepdim=True)
    tiny = torch.finfo(known.dtype).tiny
    return log_none - torch.log((-torch.expm1(log_none)).clamp(min=tiny))
