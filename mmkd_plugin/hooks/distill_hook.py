"""Attaches distillation to the model of a Runner, and keeps it through save and resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch import nn

from ..attachment import attach, detach
from ..checks import arguments, check_bool, check_int, check_keys
from ..class_map import dataset_classes
from ..distiller import Distiller
from ..images.size import check_probe_size
from ..recipes.method import Method
from ..registry import HOOKS
from ..saving.finite import on_this_rank
from ..taps.probe import Probe, training_probe
from ..teacher import Teacher, make_teacher
from ..teacher.init_student import copy_teacher_weights, parse_parts
from ..teacher.self_teacher import PREVIOUS_EPOCH, SelfTeacher
from .compiled_step_hook import CompiledStepHook
from .coupled_batches import warn_of_parts
from .loaded_weights import check_training, file_of, verify_file_of
from .loops import length_of, limit_calibration, refuse_epochs, refuse_first_epoch
from .rest_of_epoch import resume_within_epoch
from .resume import add_distillation, restore
from .run_files import PlanFile, keep_resolved
from .runner_model import include_connectors, refuse_traced, refuse_unfit_model, student_of
from .safe_checkpoint_hook import guard, intact
from .spikes import SpikeLimit
from .teacher_metrics import evaluate_teacher, refuse_evaluation
from .watch import Watch


@HOOKS.register_module()
class DistillHook(Hook):
    """Distils the model that a Runner trains.

    Before training it attaches a :class:`Distiller` to the live model; where that adds connectors,
    the model is wrapped again and optimizer and schedulers are built again from the config, before
    weights are loaded. Where the Runner has no config, connectors join its optimizer. Validation
    and test never touch the teacher. After the run the model is given back as it was.

    Args:
        teacher: ``dict(config=..., checkpoint=...)``; config as path, ``'pkg::path'``, dict or
            Config, checkpoint as path or URL. See :meth:`mmkd_plugin.teacher.Teacher.build`. Or
            ``'previous_epoch'``: self-distillation from the student as it was an epoch ago.
        terms: list of terms; or
        recipe: the name of a recipe that chooses terms for this pair, such as ``'gdd+kd'``.
        weights: of the terms, by name: ``dict(gdd=20, kd='auto')``; or for all, ``'published'``
            (the number of the recipe's table), ``'auto'``.
        task_weight: factor on the student's own losses, or ``'complement'``: one minus the current
            weights of the terms. By default what the recipe says, else 1.
        init_student: parts to start from the teacher's weights, such as ``'neck+head'``.
        seed: seeds connectors and noise.
        probe_size: height and width of a made-up image by which shapes are measured; by default
            they are on the first images of the training set.
        student_inputs: what the student's images are, where its pipeline normalises them in a way
            that cannot be read: ``dict(mean=..., std=..., range=255 | 1, order='rgb' | 'bgr')``.
        term_options: other changes to the terms by name, such as ``dict(kd=dict(begin=500))``; the
            terms of a recipe exist only once both models are built.
        limit_spikes: ``'auto'``: a run that finds weights, and whose optimizer wrapper clips
            nothing, scales steps down whose gradient is far above the usual, and those of
            connectors that would go by more than a part of their own size. A number is the norm to
            which any run that clips nothing does so, ``False`` leaves all steps as they are.
            See :class:`~mmkd_plugin.hooks.spikes.SpikeLimit`.
        evaluate_teacher: whether to evaluate the teacher on the run's own validation set, once,
            before the first iteration. Its metrics are in log and visualizer as ``teacher/...``.

    Raises:
        ValueError: no teacher, neither or both of ``terms`` and ``recipe``, and whatever
            ``attach`` refuses.

    Example:
        >>> custom_hooks = [dict(
        ...     type='mmkd_plugin.DistillHook',
        ...     teacher=dict(config='teacher.py', checkpoint='teacher.pth'),
        ...     terms=[dict(loss=dict(type='GDDLoss'), student='neck.fpn_convs.*.conv',
        ...                 weight=65.0)])]
    """

    # Before EMAHook (NORMAL), which copies the model; after RuntimeInfoHook, which logs losses.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        teacher: Any = None,
        terms: Sequence[dict] | None = None,
        recipe: str | None = None,
        task_weight: float | str | None = None,
        init_student: str | None = None,
        seed: int = 0,
        probe_size: Sequence[int] | None = None,
        term_options: dict | None = None,
        student_inputs: dict | None = None,
        weights: Any = None,
        limit_spikes: str | float = 'auto',
        evaluate_teacher: bool = False,
        **unknown: Any,
    ) -> None:
        check_keys(unknown, arguments(DistillHook), 'DistillHook')
        self.evaluate_teacher = check_bool(evaluate_teacher, 'evaluate_teacher')
        if teacher is None:
            raise ValueError(
                'DistillHook needs teacher=dict(config=..., checkpoint=...), or '
                "teacher='previous_epoch' for self-distillation."
            )
        self.method = Method(terms, recipe, weights, term_options, task_weight)
        if init_student is not None:
            parse_parts(init_student)
        check_int(seed, 'seed')
        if probe_size is not None:
            check_probe_size(probe_size)
        self.teacher = teacher
        self.init_student = init_student
        self.seed = seed
        self.probe_size = probe_size
        self.student_inputs = student_inputs
        self.distiller: Distiller | None = None
        self._watch: Watch | None = None
        self._spikes = SpikeLimit(limit_spikes)
        self._plan: PlanFile | None = None
        self._compiled_step = CompiledStepHook()

    # -- before training ---------------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        if self.distiller is not None or not _is_going_to_train(runner):
            return
        refuse_unfit_model(runner)
        verify_file_of(runner)
        student = student_of(runner)
        teacher = self._make_teacher(runner, student)
        if self.evaluate_teacher:
            refuse_evaluation(runner, teacher)
        data = runner.train_dataloader
        probe = training_probe(student, data) if self.probe_size is None else Probe(self.probe_size)
        chosen = self.method.resolve(student, teacher.model, length_of(runner), probe)
        refuse_epochs(runner, chosen.terms)
        if isinstance(teacher, SelfTeacher):
            refuse_first_epoch(runner, chosen.terms, self.method.recipe, chosen.task_weight)
        self.distiller = attach(
            student,
            teacher,
            chosen.terms,
            chosen.task_weight,
            self.seed,
            probe,
            _as_list(runner.cfg.get('activation_checkpointing')),
            self.student_inputs,
            data,
        )
        try:
            refuse_traced(runner, self.distiller)
            if any(p.requires_grad for p in self.distiller.parameters()):
                include_connectors(runner, student, self.distiller)
        except BaseException:
            self._give_back(runner)
            raise
        keep_resolved(runner, self.method, self.distiller, chosen)
        self._plan = PlanFile(chosen.remark)
        self._watch = Watch(self.distiller)
        guard(runner)

    def before_train(self, runner: Runner) -> None:
        self._compiled_step.before_train(runner)
        if self.distiller is None:
            return
        if runner.cfg.get('compile'):
            self.distiller.rng.hide()
        limit_calibration(runner, self.distiller)
        warn_of_parts(runner, self.distiller)
        resume_within_epoch(runner)
        # With load_from this has happened before loading, so that the loaded weights win.
        if self.init_student and not runner._has_loaded:
            self._inherit(runner)
        assert self._plan is not None  # made with the distiller
        self._spikes.begin(runner)
        self._plan.begin(runner, self.distiller, self._spikes.max_norm)
        if self.evaluate_teacher and runner.iter == 0:
            evaluate_teacher(runner, self.distiller.teacher)

    def before_train_epoch(self, runner: Runner) -> None:
        if self.distiller is None:
            return
        if isinstance(self.distiller.teacher, SelfTeacher):
            self.distiller.teacher.refresh(student_of(runner), runner.epoch)
        self.distiller.teacher.renew()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        assert self.distiller is not None, 'before_run attaches it'
        if isinstance(data_batch, dict):  # before the step: that of a compiled one cannot look
            self.distiller.teacher.check_images(data_batch.get('inputs'), 'loaded')
        self.distiller.set_progress(runner.iter, runner.epoch)
        self._compiled_step.run_eagerly(runner, self.distiller.calibrates)

    # -- after a step ------------------------------------------------------------------------

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        distiller, watch = self.distiller, self._watch
        assert distiller is not None and watch is not None and self._plan is not None
        self._compiled_step.after_train_iter(runner, batch_idx)
        self._spikes.update(distiller)
        self._plan.update(runner, distiller, self._spikes.max_norm)
        # RuntimeInfoHook has just fetched the losses; reading its numbers costs no further sync.
        logged = runner.message_hub.log_scalars
        for key in distiller.stale_keys(_steps_of_a_line(runner)):
            logged.pop(f'train/{key}', None)  # or every later line would show its last value
        for key in distiller.loss_keys:
            history = logged.get(f'train/{key}')
            if history is not None and not math.isfinite(history.current()):
                known = f'{watch.explain_nan(key)} {intact(runner)}'.strip()
                try:
                    distiller.raise_if_not_finite()
                except FloatingPointError as error:
                    raise FloatingPointError(f'{error} {known}'.rstrip()) from None
                raise FloatingPointError(
                    f'{key} is {history.current()} at iteration {runner.iter}{on_this_rank()}, '
                    'though its taps are finite: its connectors have diverged. Lower the learning '
                    f'rate or the weight of the term. {known}'.rstrip()
                )
        watch.after_train_iter(runner, outputs)

    # -- checkpoints -------------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.distiller is not None:
            add_distillation(checkpoint, self.distiller, runner)
            checkpoint['distiller'].update(self._spikes.state(self.distiller))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.before_run(runner)  # FlexibleRunner loads earlier
        if self.distiller is None:
            return
        check_training(student_of(runner), checkpoint, file_of(runner), runner._resume)
        if runner._resume:
            restore(self.distiller, checkpoint, runner)
            self._spikes.load(checkpoint.get('distiller') or {}, self.distiller)
        elif self.init_student:
            self._inherit(runner)

    def after_train(self, runner: Runner) -> None:
        self._compiled_step.after_train(runner)

    def after_run(self, runner: Runner) -> None:
        self._compiled_step.after_run(runner)
        self._spikes.end()
        if self.distiller is not None:
            self._give_back(runner)

    def _give_back(self, runner: Runner) -> None:
        detach(student_of(runner))
        self.distiller = self._watch = None

    def _make_teacher(self, runner: Runner, student: nn.Module) -> Teacher:
        if self.teacher != PREVIOUS_EPOCH:
            return make_teacher(self.teacher, dataset_classes(runner.train_dataloader.dataset))
        if isinstance(runner._train_loop, IterBasedTrainLoop):
            raise ValueError(
                "teacher='previous_epoch' needs a loop that counts epochs, but train_cfg counts "
                'iterations. Use train_cfg=dict(by_epoch=True, max_epochs=...).'
            )
        return SelfTeacher(student)

    def _inherit(self, runner: Runner) -> None:
        assert self.distiller is not None and self.init_student is not None
        copy_teacher_weights(student_of(runner), self.distiller.teacher.model, self.init_student)


def _is_going_to_train(runner: Runner) -> bool:
    """``before_run`` is called for training, validation and test alike."""
    loop = runner._train_loop
    return (
        isinstance(loop, BaseLoop)
        and isinstance(runner.optim_wrapper, BaseOptimWrapper)
        and loop.iter < loop.max_iters
        and not loop.stop_training  # EarlyStoppingHook ended it; what follows is validation or test
    )


def _steps_of_a_line(runner: Runner) -> int:
    """How many steps a line of the log tells of."""
    return min((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), default=1)


def _as_list(value: Any) -> list:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
