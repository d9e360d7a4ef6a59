"""The teacher: frozen, shared, and run no deeper than its taps."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from ..checks import arguments, check_bool, check_keys
from ..class_map import class_difference, resolve_class_map
from ..functional.compiling import is_compiling
from ..images.pipelines import training_data
from ..images.pixels import Pixels, of_model, stated
from ..model_config import load_model_config
from ..rng import rng_kept
from ..taps import Crop, Recorder, TapPoint
from ..taps.body import Body, body_of
from ..taps.partial_forward import PartialForward, set_inference
from .building import build_model, draw_weights, load_weights
from .frozen_form import FrozenForm, agree, holds_foreign_kernels
from .inputs import InputConverter, same_channels

TEACHER_INPUTS = 'teacher_inputs'
_LIVE_KEYS = ('model', 'compile', 'inputs', 'fold', 'channels_last')


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
        inputs: what it was trained on, where its data preprocessor does not say it:
            ``dict(mean=..., std=..., range=255 | 1, order='rgb' | 'bgr')``.
        data: its training data set, or the config of it, whose pipeline may normalise.
        fold: run with batch norms as part of the convolutions before them, see
            :class:`.FrozenForm`.
        channels_last: run in that layout, ``True``, ``False``, or ``None``: on CPUs,
            unless it is compiled.

    Raises:
        ValueError: a wrong ``compile``, ``inputs``, ``fold`` or ``channels_last``.
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
        inputs: dict | None = None,
        data: Any = None,
        fold: bool = True,
        channels_last: bool | None = None,
    ) -> None:
        if not isinstance(compile, (bool, dict)):
            raise ValueError(
                f"teacher.compile={compile!r} must be True, False or torch.compile's arguments, "
                "such as dict(mode='reduce-overhead')."
            )
        if inputs is not None:
            stated(inputs, 'teacher.inputs')
        check_bool(fold, 'teacher.fold')
        if channels_last is not None:
            check_bool(channels_last, 'teacher.channels_last')
        self._fold, self._channels_last = fold, channels_last
        self._form: FrozenForm | None = None
        self._inputs, self._data = inputs, data
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
        inputs: dict | None = None,
        fold: bool = True,
        channels_last: bool | None = None,
        student_classes: Sequence[str] | None = None,
        cfg_options: dict | None = None,
    ) -> Teacher:
        """Builds and loads a teacher.

        Args:
            config: path, ``'pkg::path'``, dict or Config.
            checkpoint: path or address of its weights, see
                :func:`mmkd_plugin.checkpoints.download.fetch`; ``'zoo'`` for those that a package
                publishes for its config; ``None`` only with ``allow_random``.
            allow_random: go on with random weights (for tests of the plumbing).
            allow_partial: go on when some parameters are not in the checkpoint.
            allow_class_mismatch: let terms compare classes although teacher and student know
                different ones. Terms on features compare none and need no leave.
            class_map: which class of the teacher is which of the student, where they differ; see
                :func:`mmkd_plugin.class_map.resolve_class_map`.
            trust_checkpoint: allow a checkpoint to hold pickled objects (they can run code).
            compile: ``True`` or a dict of ``torch.compile``'s arguments for the teacher's forward.
            inputs: see :class:`Teacher`; wins over what config and model say.
            fold: see :class:`Teacher`.
            channels_last: see :class:`Teacher`.
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
                draw_weights(model)
        else:
            classes, identity['checkpoint'] = load_weights(
                model, checkpoint, config, trust_checkpoint, allow_partial
            )
        difference = None
        if class_map is None:
            difference = class_difference(classes, student_classes)
        else:
            class_map = resolve_class_map(class_map, student_classes, classes)
        return cls(
            model,
            identity,
            classes=classes,
            compile=compile,
            class_map=class_map,
            difference=difference,
            allow_class_mismatch=allow_class_mismatch,
            inputs=inputs,
            data=training_data(cfg),
            fold=fold,
            channels_last=channels_last,
        )

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

    def pixels(self, student: Pixels) -> Pixels:
        """What its images are, beside those of the student."""
        return of_model(self.model, self._data, self._inputs, 'teacher.inputs')

    def connect(
        self, student: nn.Module, points: Sequence[TapPoint], pixels: Pixels | None = None
    ) -> None:
        """Listens at ``points`` and prepares the conversion from the student's inputs.

        Args:
            student: the model whose batches it will see.
            points: where to listen.
            pixels: what the student's images are; by default what its data preprocessor says.

        Raises:
            ValueError: if the handle already serves a student, or if it cannot be established how
                the student's images become the teacher's.
            TapError: for a point that a partial forward cannot serve.
        """
        if self.recorder is not None:
            raise ValueError(
                'This Teacher is attached to another student. Detach that one, or give both '
                'students the same module (Teacher.model): each then gets a handle of its own.'
            )
        # Whatever can refuse comes first: a failed call leaves no hook behind.
        paths = [point.path for point in points]
        body = body_of(self.model)
        if not body.holds(paths):
            body = Body('', self.model)
        inner = [body.inner(path) for path in paths]
        self._forward = PartialForward(body.module, inner, 'teacher tap')
        self._run = self._forward
        if self._compile:
            arguments = {} if self._compile is True else self._compile
            self._run = torch.compile(self._forward.__call__, **arguments)
        channels = same_channels(student, self.model)
        pixels = of_model(student) if pixels is None else pixels
        self._convert = InputConverter(pixels, self.pixels(pixels), channels)
        if pixels.divisor is not None and self._convert.divisor > 1:
            self._refuse_padding(pixels.divisor)
        self.recorder = Recorder(self.model, 'teacher')
        self.recorder.listen(points)
        self._form = FrozenForm(self.model, self._fold)

    @property
    def depth(self) -> str:
        """How deep it runs: ``'backbone'``, ``'neck'``, ``'head'`` or ``'full'``."""
        assert self._forward is not None, 'connect() comes first'
        return self._forward.depth

    def _refuse_padding(self, own: int) -> None:
        """Maps of padded images can be cut to the student's; what sees the image as one cannot."""
        assert self._forward is not None and self._convert is not None
        heads = [getattr(self._forward.model, name) for name in self._forward.heads]
        if self.depth != 'full' and not any(hasattr(head, 'num_grids') for head in heads):
            return
        divisor = self._convert.divisor
        raise ValueError(
            f'The teacher ({type(self.model).__name__}) needs images whose height and width are '
            f"multiples of {divisor}, the student's are multiples of {own}. What it says of a "
            'padded image would belong to other places than what the student says. Write '
            f'data_preprocessor=dict(pad_size_divisor={divisor}) in the model of the student '
            '(size_divisor in MMSegmentation).'
        )

    def check_images(self, images: Any, stage: str = 'final') -> None:
        """Looks once at real images of the student, if only the lack of a word says what they are.

        Raises:
            ValueError: if they are not what they are taken for.
        """
        assert self._convert is not None, 'connect() comes first'
        self._convert.check(images, stage)

    def convert(self, inputs: Any, data_samples: Any = None) -> Any:
        """The student's batch as the teacher was trained on it, see :class:`InputConverter`."""
        assert self._convert is not None, 'connect() comes first'
        return self._convert(inputs, data_samples)

    def run(self, inputs: Any, data_samples: Any = None, compiled: bool = True) -> None:
        """Fills the recorder with what the taps see on the student's own (augmented) batch.

        ``compiled=False`` is for the probe: the compiler would take the two image sizes for a sign
        that sizes change, and make slower code for all of them.

        Runs without gradient (``no_grad``, not ``inference_mode``, whose tensors a loss could not
        save for its backward) and under whatever autocast the student runs.
        """
        forward = self._run if compiled else self._forward
        assert self._convert is not None and forward is not None
        with torch.no_grad():
            images = self._convert(inputs, data_samples)
            crop = None
            if isinstance(inputs, Tensor) and inputs.shape[-2:] != images.shape[-2:]:
                self._refuse_padding(1)
                crop = Crop(len(images), tuple(inputs.shape[-2:]), tuple(images.shape[-2:]))
            # A compiled step would stop at the exchange of weights.
            form = None if is_compiling() else self._form
            if form is None:
                self._observe(forward, images, data_samples, crop)
                return
            if not form.known:
                self._find_form(form, images, data_samples)
            with form.applied():
                self._observe(forward, form.images(images), data_samples, crop)

    def _observe(
        self, forward: Callable, images: Any, data_samples: Any, crop: Crop | None = None
    ) -> None:
        assert self.recorder is not None
        self.recorder.arm(crop, contiguous=self._form is not None and self._form.channels_last)
        try:
            forward(images, data_samples)
        finally:
            self.recorder.disarm()

    def _find_form(self, form: FrozenForm, images: Any, data_samples: Any) -> None:
        """Runs the first batch as the model is, then in forms until one says the same."""
        assert self.recorder is not None and self._forward is not None
        forward, layout = self._forward, self._channels_last
        devices = {p.device.type for p in self.model.parameters()}
        if 'meta' in devices:  # no numbers to compare, and none to save time on
            form.known = True
            return
        if layout is None:
            layout = devices == {'cpu'} and not self._compile  # which chooses its own
        # Run in full, what is called depends on the images: the first batch proves too little.
        layout = layout and not (self.depth == 'full' and holds_foreign_kernels(self.model))
        with rng_kept():
            form.find(lambda: self._observe(forward, images, data_samples))
            plain, found = self.recorder.seen(), form.folded
            for form.channels_last in (True, False) if layout else (False,):
                if len(form) and self._agrees(form, images, data_samples, plain):
                    break
            else:
                form.give_up()
        if form.folded:
            told = f"{form.folded} of the teacher's batch norms are folded into its convolutions"
            print_log(f'{told} (teacher.fold=False leaves them).', 'current')
        elif found:
            told = 'The teacher says something else when its batch norms are folded: they stay.'
            print_log(told, 'current')
        elif self._fold:
            told = (
                'No batch norm of the teacher can be folded into a convolution: it runs as it is.'
            )
            print_log(told, 'current')
        if self._channels_last and not form.channels_last:
            told = 'The teacher cannot run channels-last: it runs in the usual layout.'
            print_log(told, 'current')

    def _agrees(
        self, form: FrozenForm, images: Any, data_samples: Any, plain: Sequence[Tensor]
    ) -> bool:
        """Whether the taps see the same of the model in this form."""
        assert self.recorder is not None and self._forward is not None
        try:
            with form.applied():
                self._observe(self._forward, form.images(images), data_samples)
        except RuntimeError:  # an operation that takes no other layout, such as mmcv's RoIAlign
            if form.channels_last:
                return False
            raise
        return agree(self.recorder.seen(), plain)

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """Its own answers on a batch of the student's, as in validation and without gradient.

        Args:
            inputs: (N, C, H, W), as the student's data preprocessor makes them.
            data_samples: of the batch.

        Returns:
            What the model gives with ``mode='predict'``.
        """
        assert self._convert is not None, 'connect() comes first'
        with torch.no_grad():
            images = self._convert(inputs, data_samples)
            if images.shape != inputs.shape and isinstance(data_samples, (list, tuple)):
                size = tuple(images.shape[2:])
                for sample in data_samples:
                    sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
            self.model.eval()
            try:
                return self.model(images, data_samples, mode='predict')
            finally:
                set_inference(self.model)

    def renew(self) -> None:
        """Tells that its weights were changed through ``.data``, as MMEngine's averaged models do.

        Other changes are seen before each forward. A :class:`DistillHook` calls it at the start of
        each epoch.
        """
        if self._form is not None:
            self._form.renew()

    def follow(self, parameter: Tensor) -> None:
        """Goes to the device and dtype of one of the student's parameters.

        Not by the model's own ``to``, which some models define with other arguments.
        """
        device, dtype = parameter.device, parameter.dtype
        self.model._apply(
            lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None)
        )

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
            self.recorder = self._form = None


def teacher_view(inputs: Any, data_samples: Any) -> Any:
    """What the teacher is to see of a batch: a view of its own that the student's data preprocessor
    made, ``data_samples['teacher_inputs']``, else the very batch."""
    view = data_samples.get(TEACHER_INPUTS) if isinstance(data_samples, dict) else None
    return inputs if view is None else view


# What a config may say of a teacher; the student's classes are its data set's.
TEACHER_KEYS = tuple(key for key in arguments(Teacher.build) if key != 'student_classes')


def make_teacher(teacher: Any, student_classes: Sequence[str] | None = None) -> Teacher:
    """A :class:`Teacher` from a handle, a module, or the ``teacher`` entry of a config."""
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, nn.Module):
        return Teacher(teacher)
    if isinstance(teacher, dict) and isinstance(teacher.get('model'), nn.Module):
        check_keys(teacher, _LIVE_KEYS, 'teacher (with a model)')
        return Teacher(**teacher)
    if isinstance(teacher, dict):
        check_keys(teacher, TEACHER_KEYS, 'teacher')
        if 'config' not in teacher:
            raise ValueError("teacher needs a 'config' (path, 'pkg::path', dict or Config).")
        return Teacher.build(**teacher, student_classes=student_classes)
    raise TypeError(
        "teacher is dict(config=..., checkpoint=...), 'previous_epoch' (in a DistillHook), an "
        'nn.Module, dict(model=module, inputs=dict(...)) or a Teacher, '
        f'not {type(teacher).__name__} ({teacher!r}).'
    )
