"""From a batch of uint8 images to what a classifier trains on, on the training device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ..checks import check_bool, check_keys
from ..datasets.batch_transforms import (
    BatchCenterCrop,
    BatchResize,
    BatchTransform,
    build_batch_transforms,
    pair,
    resize,
)
from ..functional.checks import check_choice, check_number
from ..functional.mixup import mixup as mix
from ..registry import MODELS

_VIEW_KEYS = dict(
    same=('mode', 'size'), fixed=('mode', 'size', 'resize'), independent=('mode', 'size')
)


@MODELS.register_module()
class ClsDataPreprocessor(BaseDataPreprocessor):
    """Moves, augments, normalises and mixes whole batches.

    uint8 batch -> device -> ``batch_augments`` (training) or ``eval_transforms`` (else) -> float,
    ``(x - mean) / std`` -> mixup (training). All random numbers come from PyTorch's global
    generators, so ``StepSeedHook`` makes them repeatable. Nothing is read back from the device.

    Args:
        mean: per channel (RGB), on the scale 0..255.
        std: per channel (RGB), on the scale 0..255.
        batch_augments: list of batch transforms for training, such as
            ``[dict(type='BatchRandomCrop', size=32, padding=4), dict(type='BatchRandomFlip')]``;
            see :mod:`mmkd_plugin.datasets.batch_transforms`.
        eval_transforms: the same for validation and test, such as
            ``[dict(type='BatchCenterCrop', size=128)]``.
        mixup: FunMatch's mixup with this Beta parameter; None or 0 is off. One factor
            ``lam ~ Beta(mixup, mixup)``, folded to ``max(lam, 1 - lam)``, per step, shared by all
            ranks; an image's partner is the one before it in the batch.
        teacher_view: what the teacher sees; by default the student's very batch. Otherwise
            ``dict(mode='same', size=S)``: the student's crop and flip, resized to S;
            ``dict(mode='fixed', size=S, resize=R)``: no augmentation, short side resized to R (by
            default not at all) and the centre S x S cut out (by default everything);
            ``dict(mode='independent', size=S)``: the student's augmentation drawn once more, at
            size S (by default the student's). It is mixed like the student's batch.
        non_blocking: copy to the device while the host goes on; for pinned memory.

    Raises:
        ValueError: a std of 0, unknown transform or key, bad ``mixup`` or ``teacher_view``.
    """

    channel_conversion = False
    file_order = 'rgb'  # of the data sets, and of mean and std

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        batch_augments: Sequence[dict] | None = None,
        eval_transforms: Sequence[dict] | None = None,
        mixup: float | None = None,
        teacher_view: dict | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(check_bool(non_blocking, 'non_blocking'))
        for name, values in (('mean', mean), ('std', std)):
            values = [float(v) for v in values]
            if len(values) not in (1, 3) or (name == 'std' and min(values) <= 0):
                raise ValueError(
                    f'{name} must be 3 numbers (RGB) or 1, on the scale 0..255'
                    f'{" and above 0" if name == "std" else ""}, got {values}.'
                )
            # Not in state_dict: the checkpoint stays that of the network.
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.batch_augments = build_batch_transforms(batch_augments, 'batch_augments')
        self.eval_transforms = build_batch_transforms(eval_transforms, 'eval_transforms')
        if mixup is not None:
            check_number('mixup', mixup, 0)
        self.mixup = mixup
        self.teacher_view = _checked_view(teacher_view)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepares a batch.

        Args:
            data: ``dict(inputs=uint8 or float (N, 3, H, W) on the scale 0..255,
                data_samples=dict(gt_label=(N,), index=(N,)))``; ``data_samples`` may be missing,
                ``teacher_inputs`` may be there (a second view made by the data loader's workers).
            training: whether to augment and mix.

        Returns:
            ``dict(inputs=float (N, 3, S, S), data_samples=dict)``; in training ``data_samples`` may
            also hold ``teacher_inputs`` float (N, 3, S', S'), ``mixed_label`` (N,) and
            ``mixed_lam`` (a scalar tensor).

        Raises:
            ValueError: inputs of another shape, mixup of a single image, two sources of the
                teacher's view.
        """
        data = self.cast_data(data)
        images = _batch(data['inputs'], 'inputs')
        samples = _samples(data.get('data_samples'))
        if not training:
            for transform in self.eval_transforms:
                images = transform(images)
            return dict(inputs=self._normalised(images), data_samples=samples)
        teacher: Tensor | None
        if data.get('teacher_inputs') is not None:
            self._refuse_second_view()
            teacher = _batch(data['teacher_inputs'], 'teacher_inputs')
        else:
            images, teacher = self._views(images)
        images = self._normalised(images)
        teacher = None if teacher is None else self._normalised(teacher)
        if self.mixup:
            if len(images) < 2:
                raise ValueError(
                    f'mixup needs two images or more in a batch, but this one has {len(images)}. '
                    'Set drop_last=True in train_dataloader, or another batch_size.'
                )
            lam = self._draw_lam(images)
            images = mix(images, lam)
            teacher = None if teacher is None else mix(teacher, lam)
            samples['mixed_lam'] = lam
            if 'gt_label' in samples:
                samples['mixed_label'] = samples['gt_label'].roll(1, 0)
        if teacher is not None:
            samples['teacher_inputs'] = teacher
        return dict(inputs=images, data_samples=samples)

    @contextmanager
    def without_mixup(self) -> Iterator[None]:
        """Training batches with augmentation, but not mixed: for the statistics of BatchNorm."""
        kept, self.mixup = self.mixup, None
        try:
            yield
        finally:
            self.mixup = kept

    def _normalised(self, images: Tensor) -> Tensor:
        images = images if images.is_floating_point() else images.float()
        return (images - self.mean) / self.std

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The student's batch and the teacher's, if it has one of its own."""
        view, chain = self.teacher_view, self.batch_augments
        if view is None:
            return _run(chain, images)[0], None
        student, draws = _run(chain, images)
        size = view.get('size')
        if view['mode'] == 'same':
            if tuple(student.shape[2:]) == pair(view['size']):
                return student, None
            return student, _run(chain, images, draws, size)[0]
        if view['mode'] == 'independent':
            return student, _run(chain, images, None, size)[0]
        if view.get('resize') is not None:
            images = BatchResize(view['resize'])(images)
        return student, images if size is None else BatchCenterCrop(size)(images)

    @torch.compiler.disable
    def _draw_lam(self, images: Tensor) -> Tensor:
        """The factor of this step as a tensor; drawn outside of a compiled step.

        There it would be a number of the host: a constant of the compiled code, or one that is
        written once into a CUDA graph.
        """
        assert self.mixup is not None
        drawn = torch.distributions.Beta(self.mixup, self.mixup).sample().item()  # on the CPU
        # Filled in, not copied: a copy of a number to the device would wait for it.
        lam = torch.full((), max(drawn, 1 - drawn), dtype=images.dtype, device=images.device)
        broadcast(lam, src=0)
        return lam

    def _refuse_second_view(self) -> None:
        if self.batch_augments or self.teacher_view is not None:
            raise ValueError(
                "The data set makes a teacher's view (teacher_inputs) of its own, so "
                'batch_augments and teacher_view must be left out: they would change one view '
                "without the other. Augment in the data set's transforms."
            )


def _run(
    chain: Sequence[BatchTransform],
    images: Tensor,
    draws: Sequence[Any] | None = None,
    size: Any = None,
) -> tuple[Tensor, list]:
    """Applies a chain, with these draws or new ones, the last sizing transform at ``size``."""
    used = []
    sizing = [i for i, transform in enumerate(chain) if transform.sets_size]
    for i, transform in enumerate(chain):
        used.append(transform.draw(images) if draws is None else draws[i])
        at_size = size if sizing and i == sizing[-1] else None
        images = transform.apply(images, used[-1], at_size)
    if size is not None and not sizing:
        images = resize(images, pair(size), antialias=False)
    return images, used


def _batch(images: Any, name: str) -> Tensor:
    if isinstance(images, (list, tuple)) and images:
        images = torch.stack(list(images))
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f'{name} must be one tensor (N, 3, H, W), got {found}. Set '
            "collate_fn=dict(type='whole_batch') in the data loader (or 'stack_batch' for "
            'TorchvisionDataset).'
        )
    return images


def _samples(samples: Any) -> dict:
    if not samples:
        return {}
    if not isinstance(samples, dict):
        raise ValueError(
            'data_samples must be one dict for the batch, such as dict(gt_label=int64 tensor '
            f"(N,)), got a {type(samples).__name__}. Set collate_fn=dict(type='whole_batch') in "
            "the data loader (or 'stack_batch' for TorchvisionDataset)."
        )
    return dict(samples)


def _checked_view(view: dict | None) -> dict | None:
    if view is None:
        return None
    if not isinstance(view, dict) or 'mode' not in view:
        raise ValueError(
            f"teacher_view must be None or a dict with a 'mode' out of {', '.join(_VIEW_KEYS)}, "
            f'got {view!r}.'
        )
    check_choice('teacher_view.mode', view['mode'], _VIEW_KEYS)
    check_keys(view, _VIEW_KEYS[view['mode']], f'teacher_view (mode={view["mode"]!r})')
    if view['mode'] == 'same' and view.get('size') is None:
        raise ValueError(
            "teacher_view=dict(mode='same') needs size=..., the height of the teacher's images; "
            "for the student's size leave teacher_view out."
        )
    for key in ('size', 'resize'):
        if view.get(key) is not None:
            pair(view[key])
    return dict(view)
