"""Puts distillation on a live model, and takes it off again.

``attach`` gives the student one submodule, ``student.distiller``, and three kinds of hooks:

* a forward pre-hook, when a training step (``mode='loss'``) begins, runs the teacher on the same
  batch and arms the taps,
* a forward hook adds the terms to the student's losses,
* state-dict hooks keep the distiller out of what the student saves and expects.

The student keeps its class, its parameter names and its forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from .compat import guard_modules
from .distiller import ATTRIBUTE, Distiller
from .images.pixels import of_model
from .recipes.method import Method
from .taps.foreign import AnyModule
from .taps.probe import Probe, split_batch, training_probe
from .teacher import Teacher, make_teacher


def attach(
    student: nn.Module,
    teacher: Any,
    terms: Sequence[dict] | None = None,
    task_weight: float | str | None = None,
    seed: int = 0,
    probe_size: Sequence[int] | Probe | None = None,
    checkpointed: Sequence[str] = (),
    student_inputs: dict | None = None,
    data: Any = None,
    recipe: str | None = None,
    weights: Any = None,
    term_options: dict | None = None,
    length: dict[str, int] | None = None,
) -> Distiller:
    """Attaches distillation to a live model; :func:`detach` gives it back.

    From then on ``student(inputs, data_samples, mode='loss')`` in training mode returns the
    student's losses and one ``loss_<name>`` per active term. Build the optimizer afterwards:
    ``student.parameters()`` now holds the connectors too.

    Args:
        student: a detector, segmenter or classifier built on MMEngine's ``BaseModel``.
        teacher: ``dict(config=..., checkpoint=...)``, a module, ``dict(model=module, inputs=...)``
            for a module whose images must be told, or a :class:`Teacher`.
        terms: list of terms, each ``dict(loss=dict(type=...), student=TAP, ...)``; or give
            ``recipe``.
        task_weight: factor on the student's own losses (0.1 in classic distillation), or
            ``'complement'``: one minus the current weights of the terms. By default what the
            recipe says, else 1.
        seed: seeds connectors and noise; global random states are left alone.
        probe_size: height and width of a made-up image by which shapes are measured. By default
            the first images of ``data``; of a config the size that it or the student says, else
            (256, 256).
        checkpointed: modules that activation checkpointing will wrap later.
        student_inputs: what the student's images are, where neither its data preprocessor nor
            ``data`` says it: ``dict(mean=..., std=..., range=255 | 1, order='rgb' | 'bgr')``.
        data: the student's training loader, data set or the config of one. Its pipeline tells how
            images are normalised; shapes are measured on its first images.
        recipe: the name of a recipe that chooses terms for this pair, such as ``'gdd+kd'``.
        weights: of the terms, by name: ``dict(gdd=20)``; or for all, ``'published'``, ``'auto'``.
        term_options: other changes to the terms by name, ``dict(kd=dict(begin=500))``.
        length: of the training, ``dict(epochs=...)`` or ``dict(iterations=...)``, for a recipe
            whose warm-up is a share of it.

    Returns:
        The distiller, which is also ``student.distiller``.

    Raises:
        ValueError: if something is attached already, neither or both of ``terms`` and ``recipe``
            are given, a term is wrong, or it cannot be established how the student's images become
            the teacher's.
        TapError: if a tap does not fit one of the models.
    """
    if hasattr(student, ATTRIBUTE):
        raise ValueError(
            f'{type(student).__name__} already has {ATTRIBUTE!r}: distillation is '
            'attached twice. Keep one DistillHook (with several terms), or call '
            'mmkd_plugin.detach first.'
        )
    if student is (teacher.model if isinstance(teacher, Teacher) else teacher):
        raise ValueError(
            f'Student and teacher are the same {type(student).__name__} object: freezing the '
            'teacher would freeze the student. Give a copy (copy.deepcopy) as the teacher.'
        )
    method = Method(terms, recipe, weights, term_options, task_weight, owner='attach')
    dataset = data.dataset if isinstance(data, DataLoader) else data
    pixels = of_model(student, dataset, student_inputs, 'student_inputs')
    probe = training_probe(student, data) if probe_size is None else probe_size
    handle = make_teacher(teacher)
    like = next(student.parameters(), None)
    if like is None:
        raise ValueError(f'{type(student).__name__} has no parameters: there is no student.')
    handle.follow(like)
    chosen = method.resolve(student, handle.model, length, probe)
    distiller = Distiller(
        student,
        handle,
        chosen.terms,
        chosen.task_weight,
        seed,
        probe,
        checkpointed,
        pixels,
    )
    # The weights of the terms, too: a single tensor of the host's keeps CUDA graphs from a
    # compiled step.
    distiller.to(device=like.device)
    distiller.handles += [
        student.register_forward_pre_hook(_before_forward, with_kwargs=True),
        student.register_forward_hook(_after_forward, with_kwargs=True),
        student._register_state_dict_hook(_drop_from_state_dict),
        student.register_load_state_dict_post_hook(_drop_from_missing),
    ]
    student.add_module(ATTRIBUTE, distiller)
    guard_modules()
    return distiller


def detach(student: nn.Module) -> None:
    """Takes distillation off again; the student is then as it was before :func:`attach`.

    Raises:
        ValueError: if nothing is attached.
    """
    distiller = getattr(student, ATTRIBUTE, None)
    if not isinstance(distiller, Distiller):
        raise ValueError(f'Nothing is attached to this {type(student).__name__}.')
    distiller.close()
    delattr(student, ATTRIBUTE)


# Plain functions that find the distiller through the module they are called with: a deep copy of
# the student (EMA) gets a working distiller of its own.


def _is_training_step(student: nn.Module, args: tuple, kwargs: dict) -> bool:
    mode = kwargs.get('mode', args[2] if len(args) > 2 else None)
    return student.training and mode == 'loss'


def _before_forward(student: AnyModule, args: tuple, kwargs: dict) -> None:
    if _is_training_step(student, args, kwargs):
        inputs, samples = split_batch(args or kwargs, type(student).__name__)
        student.distiller.begin_step(inputs, kwargs.get('data_samples', samples))
    else:
        student.distiller.abandon()


def _after_forward(student: AnyModule, args: tuple, kwargs: dict, output: Any) -> dict | None:
    if _is_training_step(student, args, kwargs):
        return student.distiller(output)
    return None


def _drop_from_state_dict(_student: nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
    own = f'{prefix}{ATTRIBUTE}'
    for entries in (state, getattr(state, '_metadata', {})):
        for key in [k for k in entries if k == own or k.startswith(own + '.')]:
            del entries[key]


def _drop_from_missing(student: AnyModule, incompatible: Any) -> None:
    own = {f'{ATTRIBUTE}.{name}' for name, _ in student.distiller.named_parameters()}
    own |= {f'{ATTRIBUTE}.{name}' for name, _ in student.distiller.named_buffers()}
    incompatible.missing_keys[:] = [
        key
        for key in incompatible.missing_keys
        if not any(key == name or key.endswith('.' + name) for name in own)
    ]
