"""Pictures of a running distillation, for every visualization backend of the run."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..checks import check_int
from ..class_map import dataset_classes
from ..distiller import ATTRIBUTE
from ..registry import HOOKS
from ..rng import rng_kept
from ..taps.foreign import AnyModule
from .distill_hook import DistillHook
from .observed import Observed
from .runner_model import student_of


@HOOKS.register_module()
class DistillVisHook(Hook):
    """Draws what student and teacher say in a training step, every ``interval`` iterations.

    For each level of a tap: the student's map, the teacher's, and their difference. A map is shown
    as the mean size of its channels, in units of its own mean. For class logits: where on the image
    the two disagree, as a heat map (dense heads, semantic segmentation) or by boxes (regions,
    queries), and for a classifier its best classes beside the teacher's.

    The pictures go to all ``vis_backends`` of the run's visualizer, as ``distill_<term>_<place>``.
    The hook looks at the tensors of the step itself: losses, random states and what is trained are
    the same as without it, and between its intervals it costs nothing. Terms that do not act in
    that iteration are not drawn. A step that ``torch.compile`` runs cannot be looked into.

    Args:
        interval: iterations between pictures.
        images: how many images of the batch are drawn.

    Raises:
        ValueError: numbers that are none, or a run without a :class:`DistillHook`.

    Example:
        >>> custom_hooks = [dict(type='mmkd_plugin.DistillVisHook', interval=500)]
    """

    priority = 'LOW'

    def __init__(self, interval: int = 500, images: int = 1) -> None:
        self.interval = check_int(interval, 'interval', 1)
        self.images = check_int(images, 'images', 1)
        self._handles: list[Any] = []
        self._observed: Observed | None = None
        self._is_off = False

    def before_train(self, runner: Runner) -> None:
        if not any(isinstance(hook, DistillHook) for hook in runner.hooks):
            raise ValueError(
                'DistillVisHook draws what a DistillHook compares, and custom_hooks has none. Add '
                'one, or leave DistillVisHook out.'
            )
        self._is_off = bool(runner.cfg.get('compile')) or not is_main_process()
        if runner.cfg.get('compile'):
            print_log(
                'DistillVisHook draws nothing in this run: a step that is compiled (compile in the '
                'config) cannot be looked into.',
                'current',
                logging.WARNING,
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._forget()  # a step that failed before this one may have left something
        if self._is_off or not self.every_n_train_iters(runner, self.interval):
            return
        student: AnyModule = student_of(runner)
        if not hasattr(student, ATTRIBUTE):
            return
        terms, pixels = student.distiller.terms, student.distiller.pixels
        classes = dataset_classes(runner.train_dataloader.dataset) or ()

        def begin(_student: nn.Module, args: tuple, kwargs: dict) -> None:
            inputs = kwargs['inputs'] if 'inputs' in kwargs else args[0]
            self._observed = Observed(inputs, pixels, self.images, classes)
            for term in terms:
                term.observer = self._observed

        def end(*_: Any) -> None:
            for term in terms:
                term.observer = None

        # The forward may fail, and nobody calls after_train_iter then.
        self._handles = [
            student.register_forward_pre_hook(begin, with_kwargs=True),
            student.register_forward_hook(end, always_call=True),
        ]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        observed = self._observed
        self._forget()
        if observed is None:
            return
        with rng_kept():
            for picture in observed.pictures:
                runner.visualizer.add_image(picture.name, picture.array, step=runner.iter + 1)

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._observed = [], None
