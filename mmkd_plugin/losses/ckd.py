"""Contrastive distillation between the samples of a batch."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.functional.checks import check_choice, check_temperature, widen
from mmkd_plugin.functional.contrastive import VARIANTS
from mmkd_plugin.registry import MODELS

from .base import LogitLoss

MAX_SAMPLES = 16384  # a matrix of their cosines takes 1 GiB


@MODELS.register_module()
class CKDLoss(LogitLoss):
    r"""Own teacher row near, others far: *Contrastive Knowledge Distillation* (sample-wise, 2024).

    .. math:: M_{ij} = \cos(t_i, s_j), \qquad
        L = -\frac{1}{B} \sum_i \log \frac{e^{M_{ii} / \tau}}{\sum_j e^{M_{ij} / \tau}}

    on raw logits, without softmax. Uses neither labels nor their classes: two samples of one class
    repel each other. A student equal to the teacher does not reach 0, and about :math:`\log B` is
    the value of an unrelated one.

    Couples the samples of a batch. Has no parameters.

    Args:
        temperature: :math:`\tau`. Default 1.0, the official code's, which takes 2.0 for two pairs
            of CIFAR-100.
        variant: ``'ts'`` contrasts teacher rows with student rows (default, the released official
            code). ``'sym'`` adds the reverse direction and ``'ss'`` contrasts student rows with
            each other, as earlier versions and a summary of the paper have it; for ablations.
        gather: Contrast the samples of all processes of a distributed run: every process computes
            the loss of the whole batch, and DDP's average of the gradients is its gradient.
            Default False, the samples of the own process, as in the official code. It waits for the
            device once per step, to learn how many samples each process has.

    Shape:
        - student, teacher: (B, C), or maps (N, C, H, W) whose every position is a sample.
        - output: ()

    Note:
        The official weights are 10, 50 or 100 beside the whole task loss on CIFAR-100, depending on
        the pair, 10 on ImageNet, 0.1 on the RoIs of two-stage detectors. No warm-up.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 4], [4, 3]]), torch.tensor([[2.0, 0], [0, 3]])
        >>> print(f'{CKDLoss()(student, teacher).item():.6f}')
        0.798139
    """

    batch_coupled = True

    def __init__(self, temperature: float = 1.0, variant: str = 'ts', gather: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice('variant', variant, VARIANTS)
        self.temperature = temperature
        self.variant = variant
        self.gather = gather
        self._told = False  # that a batch of one has nothing to learn from

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.gather and dist.is_available() and dist.is_initialized():
            student, teacher = gather_rows(widen(student)), gather_rows(teacher)
        if student.shape[0] > MAX_SAMPLES:
            raise ValueError(
                f'CKDLoss compares every sample with every other, at most {MAX_SAMPLES}, but got '
                f'{student.shape[0]}; select samples before it.'
            )
        if student.shape[0] == 1 and not self._told:
            self._told = True
            print_log(
                'CKDLoss got a batch of one sample: there is nothing to contrast it with, so its '
                'loss is 0. Raise train_dataloader.batch_size, or take another loss. (Harmless if '
                'it is the last batch of an epoch only; drop_last=True leaves that out.)',
                'current',
                logging.WARNING,
            )
        return F.contrastive(student, teacher, self.temperature, self.variant)

    def extra_repr(self) -> str:
        return f'temperature={self.temperature}, variant={self.variant!r}, gather={self.gather}'


def gather_rows(x: Tensor) -> Tensor:
    """The rows (N, C) of all processes in order of rank; their numbers may differ.

    Gradients are summed over the processes on their way back.
    """
    from torch.distributed.nn.functional import all_gather

    own = torch.tensor([x.shape[0]], device=x.device)
    counts = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    counts = [int(count) for count in counts]
    missing = max(counts) - x.shape[0]
    if missing:  # all_gather takes equal shapes only
        x = torch.cat([x, x.new_zeros(missing, x.shape[1])])
    return torch.cat([rows[:count] for rows, count in zip(all_gather(x), counts)])
