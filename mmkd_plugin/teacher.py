"""The teacher: built, loaded, checked, frozen, shared, and run no deeper than its taps."""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, revert_sync_batchnorm
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from . import checkpoint as ckpt
from .checks import check_bool
from .class_map import class_difference, resolve_class_map
from .compat import check_stack
from .execution import PartialForward, rng_kept, set_inference
from .model_config import load_model_config
from .preprocess import InputConverter
from .registry import check_keys
from .taps import Recorder, TapPoint

TEACHER_KEYS = (
    'config',
    'cfg_options',
    'checkpoint',
    'allow_random',
    'allow_partial',
    'allow_class_mismatch',
    'class_map',
    'trust_checkpoint',
    'compile',
)


def build_model(config: Config) -> nn.Module:
    """Builds ``config.model`` as a Runner would, with random weights, drawing no random number
    of the caller's and leaving the default scope as it was."""
    model = copy.deepcopy(config.model)
    if isinstance(model, nn.Module):
        return model
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    scope = config.get('default_scope') or _current_scope() or 'mmengine'
    with rng_kept(), DefaultScope.overwrite_default_scope(scope):
        _import_scope(scope)
        return ROOT_MODELS.build(ConfigDict(model))


def _draw_weights(model: nn.Module) -> None:
    """Initialises a model as a Runner does, but downloads nothing: some parameters (the level
    embeddings of Deformable DETR) are mere memory before, not numbers."""
    for module in model.modules():
        cfgs = getattr(module, 'init_cfg', None) or []
        cfgs = [cfgs] if isinstance(cfgs, dict) else cfgs
        if any(cfg['type'] in ('Pretrained', PretrainedInit) for cfg in cfgs):
            module.init_cfg = None
    if hasattr(model, 'init_weights'):
        with rng_kept():
            model.init_weights()


def _how_to_get(config: Any) -> str:
    """Where a teacher's weights come from, if the config is a file."""
    if not isinstance(config, (str, Path)):
        return ''
    return (
        f'Train the teacher first (python tools/train.py {config}), or name its file '
        '(teacher.checkpoint in the config, --teacher-checkpoint of tools/train.py).'
    )


def _current_scope() -> str | None:
    current = DefaultScope.get_current_instance()
    return current.scope_name if current else None


# What each project's models import beside MMEngine; MMPreTrain runs without compiled operators.
_SCOPE_NEEDS = dict(mmdet=('mmcv', 'mmdet'), mmseg=('mmcv', 'mmseg'), mmpretrain=())


def _import_scope(scope: str) -> None:
    """Lets a package register its modules, without becoming the default scope for good."""
    if scope in _SCOPE_NEEDS:
        check_stack(('mmengine', *_SCOPE_NEEDS[scope]))
        utils = importlib.import_module(f'{scope}.utils')
        utils.register_all_modules(init_default_scope=False)


class Teacher:
    """A frozen model outside the student: not in its parameters, state dict, EMA copy or DDP.

    Copies of the student share it (a deep copy of the handle is the handle itself); device and
    dtype moves of the student are forwarded by the distiller.

    Args:
        model: the network; it is frozen and put into eval mode in place.
        identity: what a resumed run checks: ``config`` and ``checkpoint`` hashes.
        classes: class names it was trained on, if known.
        compile: arguments of ``torch.compile`` for the teacher's forward, ``True`` for its
            defaults.
        class_map: the teacher's index, or -1, for each class of the student; None if the classes
            are the same.
        difference: how its classes differ from the student's, in a sentence; None if they do not.
        allow_class_mismatch: let terms compare classes all the same.
    """

    def __init__(
        self,
        model: nn.Module,
        identity: dict | None = None,
        classes: Sequence[str] | None = None,
        compile: bool | dict = False,
        class_map: Sequence[int] | None = None,
        difference: str | None = None,
        allow_class_mismatch: bool = False,
    ) -> None:
        if not isinstance(compile, (bool, dict)):
            raise ValueError(
                f"teacher.compile={compile!r} must be True, False or torch.compile's arguments, "
                "such as dict(mode='reduce-overhead')."
            )
        self.model = revert_sync_batchnorm(model)
        self.model.requires_grad_(False)
        self.identity = identity or dict(config=None, checkpoint=None)
        self.classes = tuple(classes) if classes else None
        self.class_map = None if class_map is None else tuple(class_map)
        self.difference = difference
        self.allow_class_mismatch = allow_class_mismatch
        self.recorder: Recorder | None = None
        self._forward: PartialForward | None = None
        self._run: Callable | None = None
        self._compile = compile
        self._convert: InputConverter | None = None
        set_inference(self.model)

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    @classmethod
    def build(
        cls,
        config: Any,
        checkpoint: str | None = None,
        allow_random: bool = False,
        allow_partial: bool = False,
        allow_class_mismatch: bool = False,
        class_map: Any = None,
        trust_checkpoint: bool = False,
        compile: bool | dict = False,
        student_classes: Sequence[str] | None = None,
        cfg_options: dict | None = None,
    ) -> Teacher:
        """Builds and loads a teacher.

        Args:
            config: path, ``'pkg::path'``, dict or Config.
            checkpoint: path or address of its weights, see :func:`mmkd_plugin.download.fetch`;
                ``None`` only with ``allow_random``.
            allow_random: go on with random weights (for tests of the plumbing).
            allow_partial: go on when some parameters are not in the checkpoint.
            allow_class_mismatch: let terms compare classes although teacher and student know
                different ones. Terms on features compare none and need no leave.
            class_map: which class of the teacher is which of the student, where they differ; see
                :func:`mmkd_plugin.class_map.resolve_class_map`.
            trust_checkpoint: allow a checkpoint to hold pickled objects (they can run code).
            compile: ``True`` or a dict of ``torch.compile``'s arguments for the teacher's forward.
            student_classes: class names of the student's data set, if known.
            cfg_options: changes to the config, such as ``{'model.backbone.depth': 50}``.

        Raises:
            CheckpointError: missing, damaged, foreign or incomplete checkpoint.
            ValueError: names in ``class_map`` that are not known, no checkpoint and no
                ``allow_random``, or a switch that is neither ``True`` nor ``False``.
        """
        check_bool(allow_random, 'teacher.allow_random')
        check_bool(allow_partial, 'teacher.allow_partial')
        check_bool(allow_class_mismatch, 'teacher.allow_class_mismatch')
        check_bool(trust_checkpoint, 'teacher.trust_checkpoint')
        cfg = load_model_config(config, cfg_options, 'teacher')
        if checkpoint is None and not allow_random:
            raise ValueError(
                'teacher.checkpoint is None: a teacher with random weights teaches '
                'noise. Give a path or URL, or allow_random=True for a dry run.'
            )
        model = build_model(cfg)
        digest = hashlib.sha256(repr(cfg.model).encode()).hexdigest()
        identity, classes = dict(config=digest, checkpoint=None), None
        if checkpoint is None:
            print_log(
                'The teacher has RANDOM weights (allow_random=True): this run tests the '
                'plumbing, its result means nothing.',
                'current',
                logging.WARNING,
            )
            if not isinstance(cfg.model, nn.Module):  # a network that is given keeps its weights
                _draw_weights(model)
        else:
            path = ckpt.fetch(checkpoint, 'teacher.checkpoint', _how_to_get(config))
            loaded, identity['checkpoint'] = ckpt.read_file(
                path, 'teacher.checkpoint', trust_checkpoint
            )
            state = ckpt.state_dict_of(loaded, f'teacher.checkpoint={str(path)!r}')
            if hasattr(model, 'adapt_state_dict'):  # a classifier reads torchvision's files, too
                state = model.adapt_state_dict(state)
            ckpt.load_all(model, state, str(path), allow_partial)
            classes = ckpt.classes_of(loaded)
        difference = None
        if class_map is None:
            difference = class_difference(classes, student_classes)
        else:
            class_map = resolve_class_map(class_map, student_classes, classes)
        return cls(model, identity, classes, compile, class_map, difference, allow_class_mismatch)

    def refuse_other_classes(self, where: str) -> None:
        """Refuses (or, where allowed, reports) other classes, for a term that compares them.

        Args:
            where: names the term in the message.

        Raises:
            ValueError: saying where the lists of names part.
        """
        if self.difference is None:
            return
        if not self.allow_class_mismatch:
            raise ValueError(
                f'{where}: {self.difference} Logits of such a pair do not correspond. Say which '
                "classes they share with teacher=dict(..., class_map='names'), distil features "
                'instead, or add allow_class_mismatch=True to teacher if they correspond all the '
                'same.'
            )
        print_log(f'{where}: {self.difference}', 'current', logging.WARNING)

    def connect(self, student: nn.Module, points: Sequence[TapPoint]) -> None:
        """Listens at ``points`` and prepares the conversion from the student's inputs.

        Raises:
            ValueError: if the handle already serves a student.
            TapError: for a point that a partial forward cannot serve.
        """
        if self.recorder is not None:
            raise ValueError(
                'This Teacher is attached to another student. Detach that one, or give both '
                'students the same module (Teacher.model): each then gets a handle of its own.'
            )
        # Whatever can refuse comes first: a failed call leaves no hook behind.
        self._forward = PartialForward(self.model, [p.path for p in points], 'teacher tap')
        self._run = self._forward
        if self._compile:
            arguments = {} if self._compile is True else self._compile
            self._run = torch.compile(self._forward.__call__, **arguments)
        self._convert = InputConverter(
            getattr(student, 'data_preprocessor', None),
            getattr(self.model, 'data_preprocessor', None),
        )
        self.recorder = Recorder(self.model, 'teacher')
        self.recorder.listen(points)

    @property
    def depth(self) -> str:
        """How deep it runs: ``'backbone'``, ``'neck'``, ``'head'`` or ``'full'``."""
        return self._forward.depth

    def run(self, inputs: Tensor, data_samples: list | None = None, compiled: bool = True) -> None:
        """Fills the recorder with what the taps see on the student's own (augmented) batch.

        ``compiled=False`` is for the probe: the compiler would take the two image sizes for a sign
        that sizes change, and make slower code for all of them.

        Runs without gradient (``no_grad``, not ``inference_mode``, whose tensors a loss could not
        save for its backward) and under whatever autocast the student runs.
        """
        with torch.no_grad():
            self.recorder.arm()
            try:
                forward = self._run if compiled else self._forward
                forward(self._convert(inputs, data_samples), data_samples)
            finally:
                self.recorder.disarm()

    def move(self, fn: Any) -> None:
        """Applies a device or dtype change of the student to the teacher."""
        self.model._apply(fn)

    def resume_state(self) -> dict | None:
        """What a resumed run needs of the teacher itself; nothing, as it never changes."""
        return None

    def load_resume_state(self, state: dict) -> None:
        """The checkpoint comes from a run with a changing teacher, of which this is none."""

    def close(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None


def make_teacher(teacher: Any, student_classes: Sequence[str] | None = None) -> Teacher:
    """A :class:`Teacher` from a handle, a module, or the ``teacher`` entry of a config."""
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, nn.Module):
        return Teacher(teacher)
    if isinstance(teacher, dict):
        check_keys(teacher, TEACHER_KEYS, 'teacher')
        if 'config' not in teacher:
            raise ValueError("teacher needs a 'config' (path, 'pkg::path', dict or Config).")
        return Teacher.build(**teacher, student_classes=student_classes)
    raise TypeError(
        "teacher is dict(config=..., checkpoint=...), 'previous_epoch' (in a DistillHook), an "
        f'nn.Module or a Teacher, not {type(teacher).__name__} ({teacher!r}).'
    )
