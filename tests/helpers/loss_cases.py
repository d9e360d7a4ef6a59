"""Every registered loss with what it needs: random inputs, labels and features, quiet options."""

from __future__ import annotations

import inspect

import pytest
import torch

from mmkd_plugin.losses import BoxLoss, DistillLoss, FeatureLoss, LogitLoss
from mmkd_plugin.registry import MODELS

LOSSES = {
    name: cls
    for name, cls in sorted(MODELS.module_dict.items())
    if inspect.isclass(cls) and issubclass(cls, DistillLoss)
    if cls.__module__.startswith('mmkd_plugin.')  # other tests register losses of their own
}
FEATURE = [name for name, cls in LOSSES.items() if issubclass(cls, FeatureLoss)]
BOX = [name for name, cls in LOSSES.items() if issubclass(cls, BoxLoss)]
LOGIT = [name for name, cls in LOSSES.items() if issubclass(cls, LogitLoss)]
CLASSES, FEATURES = 6, 5
# options that switch the random part off
QUIET = dict(GDDLoss=dict(noise='none'), MGDLoss=dict(mask_ratio=0.0))
each_loss = pytest.mark.parametrize('name', LOSSES)
each_feature_loss = pytest.mark.parametrize('name', FEATURE)
each_logit_loss = pytest.mark.parametrize('name', LOGIT)


class Rng:
    """Stands for the distiller's source of random numbers."""

    def __init__(self, seed: int) -> None:
        self.source = torch.Generator().manual_seed(seed)

    def generator(self, device: torch.device) -> torch.Generator:
        assert torch.device(device).type == 'cpu'
        return self.source


def inputs(name: str, batch: int = 4, seed: int = 0, equal: bool = False):
    """Feature losses get maps of 4 and 6 channels (or 6 and 6), losses on boxes corners near the
    truth, the others logits of 6 classes."""
    g = torch.Generator().manual_seed(seed)
    if name in BOX:  # the teacher's are nearer
        return tuple(truth(batch) + size * torch.rand(batch, 4, generator=g) for size in (4, 1))
    if name not in FEATURE:
        return tuple(2 * torch.randn(batch, 6, generator=g) for _ in 'st')
    student = torch.randn(batch, 6 if equal else 4, 5, 7, generator=g)
    return 2 * student, 2 * torch.randn(batch, 6, 5, 7, generator=g)


def truth(batch: int) -> torch.Tensor:
    """Boxes (N, 4) of objects."""
    corners = 20 * torch.rand(batch, 2, generator=torch.Generator().manual_seed(2))
    return torch.cat([corners, corners + 10], 1)


def extras(name: str, s: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the loss needs beside the logits ``s``, the same for equal batch sizes."""
    g = torch.Generator().manual_seed(1)
    given = dict(
        truth=truth(len(s)).to(s.dtype),
        scores=0.1 + torch.rand(len(s), generator=g).to(s.dtype),
        labels=torch.randint(CLASSES, (len(s),), generator=g),
        features=torch.randn(len(s), FEATURES, generator=g).to(s.dtype),
    )
    return {key: given[key] for key in LOSSES[name].needs}


def build(name: str, s: torch.Tensor, t: torch.Tensor, **kwargs) -> DistillLoss:
    torch.manual_seed(0)
    loss = MODELS.build(dict(type=name, **kwargs))
    loss.connect(s.shape, t.shape, (len(s), FEATURES))
    return loss


def objective(loss: DistillLoss, value: torch.Tensor) -> torch.Tensor:
    """What training minimises: the loss, and the auxiliary losses of its connectors."""
    return value + sum(loss.auxiliary.values())
