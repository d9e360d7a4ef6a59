"""Student and teacher of a config, as training would build them, without a Runner.

A Runner writes into its work dir and makes the optimizer. Here nothing is written.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import HOOKS
from torch import nn

from ..attachment import attach, detach
from ..checkpoints import fit as ckpt
from ..class_map import dataset_classes
from ..distiller import Distiller
from ..errors import CheckpointError
from ..hooks.distill_hook import DistillHook
from ..hooks.entries import distill_hooks
from ..hooks.loaded_weights import check_test, check_training
from ..images.pixels import Pixels, of_model
from ..rng import rng_kept
from ..taps.foreign import AnyModule
from ..teacher import Teacher, build_model, draw_weights, make_teacher
from ..teacher.init_student import copy_teacher_weights
from ..teacher.self_teacher import PREVIOUS_EPOCH
from .class_checks import evidence_of_names
from .findings import Report
from .refusals import code_of, note_refusal


@dataclass
class Pair:
    """What is examined.

    Attributes:
        cfg: the distilled config.
        hook: its DistillHook.
        student: with the weights of its checkpoint, or those with which a training begins.
        teacher: None where it could not be built, or is the student itself.
        trained: whether the student has the weights of a checkpoint.
        dataset: that the student is trained on; None where it could not be built.
        device: where both are.
    """

    cfg: Config
    hook: DistillHook
    student: AnyModule
    teacher: Teacher | None
    trained: bool
    dataset: Any
    device: str

    @property
    def pixels(self) -> Pixels:
        """What the student's images are."""
        inputs = self.hook.student_inputs
        return of_model(self.student, self.dataset, inputs, 'student_inputs')

    @property
    def teacher_config(self) -> dict:
        """The ``teacher`` of the hook; empty where it is the student."""
        return self.hook.teacher if isinstance(self.hook.teacher, dict) else {}


def build_pair(cfg: Config, dataset: Any, student_checkpoint: str | None, report: Report) -> Pair:
    """Builds both models; what is refused becomes a finding.

    Raises:
        ValueError: a student that cannot be built, without which there is nothing to look at.
    """
    hook = HOOKS.build(copy.deepcopy(distill_hooks(cfg)[0]))
    with rng_kept():
        torch.manual_seed(0)
        student = build_model(cfg)
        draw_weights(student)
    trained = False
    if student_checkpoint is not None:
        try:
            check_test(student, read_checkpoint(student_checkpoint), 'student checkpoint')
            trained = True
        except (CheckpointError, OSError) as error:
            note_refusal(report, error, 'student')
    elif cfg.get('load_from'):
        try:
            check_training(student, read_checkpoint(cfg.load_from), 'load_from', False)
        except (CheckpointError, OSError) as error:
            note_refusal(report, error, 'load_from')
    device = get_device()
    student.to(device)
    teacher = _build_teacher(hook, dataset, report)
    if teacher is not None:
        teacher.follow(next(student.parameters()))
        if hook.init_student and not trained:
            copy_teacher_weights(student, teacher.model, hook.init_student)
    return Pair(cfg, hook, student.eval(), teacher, trained, dataset, device)


def read_checkpoint(file: str) -> Any:
    """What a file holds, read without executing anything in it."""
    path = ckpt.fetch(file, 'checkpoint')
    return ckpt.read_file(path, 'checkpoint', False)[0]


def _build_teacher(hook: DistillHook, dataset: Any, report: Report) -> Teacher | None:
    if hook.teacher == PREVIOUS_EPOCH:
        report.add(
            'not-examined', 'teacher', {}, "teacher='previous_epoch' is the student itself", 'note'
        )
        return None
    classes = dataset_classes(dataset) if dataset is not None else None
    try:
        return make_teacher(hook.teacher, classes)
    except Exception as error:
        note_refusal(report, error, 'teacher')
        first = error
    if not isinstance(first, CheckpointError) or not isinstance(hook.teacher, dict):
        return None
    try:  # what a file fills only in part can still be looked at
        return make_teacher(dict(hook.teacher, allow_partial=True), classes)
    except Exception:
        return None


# -- terms ----------------------------------------------------------------------------------------


def attach_terms(pair: Pair, report: Report) -> Distiller | None:
    """Attaches every term that the pair takes; those that it refuses become findings."""
    assert pair.teacher is not None
    try:
        chosen = pair.hook.method.resolve(pair.student, pair.teacher.model, length_of(pair.cfg))
    except Exception as error:
        note_refusal(report, error, pair.hook.method.recipe or 'terms')
        return None
    terms = list(chosen.terms)
    while terms:
        try:
            return attach(
                pair.student,
                pair.teacher,
                terms,
                chosen.task_weight,
                pair.hook.seed,
                pair.hook.probe_size,
                _as_list(pair.cfg.get('activation_checkpointing')),
                pair.hook.student_inputs,
                pair.dataset,
            )
        except Exception as error:
            index = refused_term(error)
            named = index is not None and index < len(terms)
            where = _name(terms[index], index) if named and index is not None else 'terms'
            note_refusal(report, error, where, _known(pair, error))
            if not named or index is None:
                return None
            del terms[index]
    return None


def _known(pair: Pair, error: BaseException) -> dict[str, Any]:
    """What the pair knows of a refusal: of classes that differ, their names."""
    if pair.teacher is None or code_of(error) != 'class-names':
        return {}
    student = dataset_classes(pair.dataset) if pair.dataset is not None else None
    return evidence_of_names(pair.teacher.classes or (), student or ())


def give_back(student: nn.Module) -> None:
    """Takes the terms off again, if any are on."""
    if hasattr(student, 'distiller'):
        detach(student)


def refused_term(error: BaseException) -> int | None:
    """The index of the term that an error is about, as messages begin with it."""
    found = re.match(r'terms\[(\d+)\]', str(error))
    return int(found[1]) if found else None


def _name(term: Any, index: int) -> str:
    from ..terms.options import term_name

    return term_name(term, index)


def length_of(cfg: Config) -> dict[str, int]:
    """How long a training is, for recipes with a warm-up that is a share of it."""
    train = cfg.get('train_cfg') or {}
    if train.get('max_epochs'):
        return dict(epochs=train['max_epochs'])
    return dict(iterations=train['max_iters']) if train.get('max_iters') else {}


def _as_list(value: Any) -> list:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
