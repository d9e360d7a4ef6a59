"""Contrastive distillation between the samples of a batch."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from mmkd_plugin import functional as F
from mmkd_plugin.checks import check_bool
from mmkd_plugin.functional.checks import check_choice, check_temperature, widen
from mmkd_plugin.functional.contrastive import VARIANTS
from mmkd_plugin.registry import MODELS

from .logit_base import LogitLoss
from .row_base import select_by_kind

MAX_SAMPLES = 16384  # 268 million cosines, which are made in blocks
MAX_IMAGES = 2**20  # of a process


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
        per_image: Contrast the samples of an image with each other only. Default False, all that
            the process selected, as in the official code. With 8 images it is an eighth of the
            work, except for RoIs on accelerators.

    Shape:
        - student, teacher: (B, C), or maps (N, C, H, W) whose every position is a sample.
        - images: (B,) or (N, H, W), with ``per_image``.
        - output: ()

    Note:
        The official weights are 10, 50 or 100 beside the whole task loss on CIFAR-100, depending on
        the pair, 10 on ImageNet, 0.1 on the RoIs of two-stage detectors. No warm-up.

    Note:
        On RoIs it contrasts all that were sampled, as the official code does, foreground and
        background (``select='positive'``: foreground only). On dense heads it takes the 512
        positions of an image of which the teacher is surest, those with a label first, and on maps
        of pixels 512 random ones, drawn anew in every step: neighbours say the same, and the surest
        pixels are the inside of large areas.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 4], [4, 3]]), torch.tensor([[2.0, 0], [0, 3]])
        >>> print(f'{CKDLoss()(student, teacher).item():.6f}')
        0.798139
    """

    batch_coupled = True
    compares_rows = True
    one_column_refusal = 'compares the directions of logit vectors, which these have not'
    default_select = select_by_kind(
        dense=dict(by='teacher_topk', k=512, positives=True), pixel=dict(by='random', k=512)
    )

    def __init__(
        self,
        temperature: float = 1.0,
        variant: str = 'ts',
        gather: bool = False,
        per_image: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice('variant', variant, VARIANTS)
        check_bool(gather, 'gather')
        check_bool(per_image, 'per_image')
        self.temperature = temperature
        self.variant = variant
        self.gather = gather
        self.per_image = per_image
        if per_image:
            self.needs = ('images',)
        self._told = False  # that a batch of one has nothing to learn from

    def compute(
        self,
        student: Tensor,
        teacher: Tensor,
        weights: Tensor | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        groups: Tensor | int | None = None
        if self.per_image:
            groups = self.rows_of_image or images
        if self.gather and dist.is_available() and dist.is_initialized():
            own_rows = student.shape[0]
            student, teacher = gather_processes(widen(student)), gather_processes(teacher)
            # Another rank may have weights: all must gather the same things.
            weights = student.new_ones(own_rows) if weights is None else weights
            weights = gather_processes(weights[:, None])[:, 0]
            if images is not None:
                own = images + dist.get_rank() * MAX_IMAGES  # the same index is another image there
                groups = gather_processes(own.double()[:, None])[:, 0]
        self._check_size(student.shape[0])
        return F.contrastive(student, teacher, self.temperature, self.variant, weights, groups)

    def rows(self, student: Tensor, teacher: Tensor, images: Tensor | None = None) -> Tensor:
        """The contrast of each row with the others, (B,)."""
        self._check_size(student.shape[0])
        return F.contrastive(
            student, teacher, self.temperature, self.variant, groups=images, reduction='none'
        )

    def _check_size(self, samples: int) -> None:
        if samples > MAX_SAMPLES:
            raise ValueError(
                f'CKDLoss compares every sample with every other, at most {MAX_SAMPLES}, but got '
                f"{samples}; select samples before it: select=dict(by='teacher_topk', k=512) in "
                "the term takes 512 of an image, and 'positive' those with a label."
            )
        if samples == 1 and not self._told:
            self._told = True
            print_log(
                'CKDLoss got a batch of one sample: there is nothing to contrast it with, so its '
                'loss is 0. Raise train_dataloader.batch_size, or take another loss. (Harmless if '
                'it is the last batch of an epoch only; drop_last=True leaves that out.)',
                'current',
                logging.WARNING,
            )


def gather_processes(x: Tensor) -> Tensor:
    """The rows (N, C) of all processes in order of rank; their numbers may differ.

    Gradients are summed over the processes on their way back.
    """
    from torch.distributed.nn.functional import all_gather

    own = torch.tensor([x.shape[0]], device=x.device)
    gathered = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    counts = [int(count) for count in gathered]
    missing = max(counts) - x.shape[0]
    if missing:  # all_gather takes equal shapes only
        x = torch.cat([x, x.new_zeros(missing, x.shape[1])])
    return torch.cat([rows[:count] for rows, count in zip(all_gather(x), counts)])
