"""The teacher's metrics on the validation set of a run, once, before anything is trained."""

from __future__ import annotations

import copy
import logging
from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.runner import Runner, autocast

from ..rng import rng_kept
from ..taps.foreign import AnyModule
from ..teacher import Teacher
from ..teacher.self_teacher import SelfTeacher
from .runner_model import student_of

PREFIX = 'teacher/'  # of the metrics, in log and visualizer
_ALONE = 'Leave it out, and evaluate the teacher with its own config (mmkd test CONFIG CHECKPOINT).'


def refuse_evaluation(runner: Runner, teacher: Teacher) -> None:
    """Refuses ``evaluate_teacher=True`` where there is nothing to evaluate on, or nobody to.

    Raises:
        ValueError: saying what is missing.
    """
    loop = runner._val_loop
    if loop is None:
        raise ValueError(
            'evaluate_teacher=True needs a validation set, and the config has none: val_cfg, '
            'val_dataloader and val_evaluator are not set. Give them, or leave evaluate_teacher '
            'out.'
        )
    for part in ('dataloader', 'evaluator'):
        if not hasattr(loop, part):
            raise ValueError(
                f'evaluate_teacher=True: the loop of val_cfg ({type(loop).__name__}) has no '
                f"{part} by which the teacher could be evaluated. Take MMEngine's ValLoop. {_ALONE}"
            )
    name = type(teacher.model).__name__
    if isinstance(teacher, SelfTeacher):
        raise ValueError(
            "evaluate_teacher=True: with teacher='previous_epoch' there is no teacher before the "
            'first epoch; validation tells how good the student, which it is later, has become.'
        )
    if not isinstance(teacher.model, BaseModel):
        raise ValueError(
            f"evaluate_teacher=True: the teacher ({name}) is no BaseModel of MMEngine's, which "
            "would give predictions with mode='predict', so no evaluator can read it."
        )
    difference = None if teacher.allow_class_mismatch else teacher.difference
    if teacher.class_map is not None:
        difference = 'The teacher knows other classes, as its class_map says.'
    if difference is not None:
        raise ValueError(
            f'evaluate_teacher=True: {difference} Its labels are not those of the validation set. '
            f'{_ALONE}'
        )


def evaluate_teacher(runner: Runner, teacher: Teacher) -> None:
    """Evaluates the teacher as a validation would, and writes its metrics into log and visualizer.

    The loader and the evaluator are the run's own. The images are preprocessed for the student and
    converted as in a training step. Random states stay as they were. Every rank must call it.

    Raises:
        ValueError: an evaluator that does not take the predictions of the teacher.
    """
    loop = runner.val_loop
    name = type(teacher.model).__name__
    runner.logger.info(f'Evaluating the teacher ({name}) on {len(loop.dataloader)} batches.')
    with rng_kept():
        try:
            metrics = _evaluated(loop, student_of(runner), teacher)
        except Exception as error:
            metrics_of = ', '.join(type(metric).__name__ for metric in loop.evaluator.metrics)
            raise ValueError(
                f'evaluate_teacher=True: the evaluator ({metrics_of}) cannot read what the teacher '
                f'({name}) says of the validation set: {type(error).__name__}: {error}. {_ALONE}'
            ) from error
    told = {f'{PREFIX}{key}': value for key, value in metrics.items()}
    if not told:
        print_log(
            f'The evaluator gave no metric for the teacher ({name}): it may have found nothing.',
            'current',
            logging.WARNING,
        )
        return
    runner.logger.info('  '.join(f'{key}: {_text(value)}' for key, value in told.items()))
    numbers = {key: float(value) for key, value in told.items() if _is_number(value)}
    file = next((hook.json_log_path for hook in runner.hooks if isinstance(hook, LoggerHook)), None)
    runner.visualizer.add_scalars(numbers, step=0, file_path=file)


def _evaluated(loop: Any, student: AnyModule, teacher: Teacher) -> dict:
    # A copy: a loader that keeps its workers would begin its first validation in another way.
    loader = copy.copy(loop.dataloader)
    with autocast(enabled=getattr(loop, 'fp16', False)):
        for batch in loader:
            data = student.data_preprocessor(batch, False)
            inputs, samples = _parts(data)
            outputs = teacher.predict(inputs, samples)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
    return loop.evaluator.evaluate(len(loader.dataset))


def _parts(data: Any) -> tuple[Any, Any]:
    """Images and samples of a preprocessed batch."""
    if isinstance(data, dict):
        return data['inputs'], data.get('data_samples')
    return data[0], data[1] if len(data) > 1 else None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _text(value: Any) -> str:
    return f'{float(value):.4f}' if _is_number(value) else str(value)
