"""Both models on the same labelled images, the teacher also with other conventions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..images.pixels import Pixels
from ..rng import rng_kept
from ..taps.foreign import AnyModule
from ..teacher.inputs import InputConverter
from .conventions import Convention, conventions, pixel_values
from .images import Labelled
from .metrics import Metrics
from .readings import Reading, image_scores, read_outputs

LOOKS = (8, 16, 32, 64, 128)  # images after which conventions without promise are dropped
_STATISTICS = 8  # images whose pixels tell mean and std


@dataclass
class Answers:
    """What the models say of the images, a reading for each image.

    Attributes:
        teacher: as configured; empty where it could not be given images.
        student: empty without a trained student.
        others: by convention; of those that were dropped, of the first images.
        names: the student's class, or -1, for each of the teacher's; None if they are the same.
        comparable: whether the classes of both can be compared.
        metrics: of the config's evaluator, by role.
        refused: why the teacher could not be given images as configured.
    """

    names: np.ndarray | None = None
    comparable: bool = True
    teacher: list[Reading] = field(default_factory=list)
    student: list[Reading] = field(default_factory=list)
    others: dict[Convention, list[Reading]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: Exception | None = None


class Reader:
    """Reads batches with both models.

    Args:
        student: the model; it is asked only if it is trained.
        teacher: the teacher's network; None reads the student alone.
        trained: whether the student is trained.
        pixels: what the images of student and teacher are.
        names: see :class:`Answers`.
        comparable: see :class:`Answers`.
    """

    def __init__(
        self,
        student: AnyModule,
        teacher: AnyModule | None,
        trained: bool,
        pixels: tuple[Pixels, Pixels | None],
        names: np.ndarray | None = None,
        comparable: bool = True,
    ) -> None:
        self.models = dict(student=student if trained else None, teacher=teacher)
        self.student = student
        self.pixels = pixels
        self.answers = Answers(names, comparable)
        self._convert: InputConverter | None = None
        self._alive: list[Convention] = []

    def read(self, images: Labelled, cfg: Any, step: Callable[[int], None]) -> Answers:
        """Goes through the images once.

        Args:
            images: with labels.
            cfg: the config, whose ``val_evaluator`` gives the metrics.
            step: told how many images are done.

        Returns:
            What was read, also where a model fails in the middle.
        """
        metrics = {role: Metrics(cfg, images) for role in self.models}
        first = self._first_images(images)
        self._prepare(first)
        for batch in images:
            inputs, samples = self._prepared(batch)
            for role, model in self.models.items():
                convert = self._convert if role == 'teacher' else _same
                if model is None or convert is None:
                    continue
                outputs = predict(model, convert(inputs, samples), samples)
                found = self._readings(outputs, samples, images, role)
                getattr(self.answers, role).extend(found)
                metrics[role].add(outputs, batch)
            self._read_others(inputs, samples, images)
            self._drop()
            step(len(inputs))
        if self.answers.names is None:
            for role in ('teacher', 'student'):
                self.answers.metrics[role] = metrics[role].result()
        return self.answers

    def _first_images(self, images: Labelled) -> Tensor:
        found: list[Tensor] = []
        for batch in images:
            found += list(self._prepared(batch)[0])
            if len(found) >= _STATISTICS:
                break
        size = [max(x.shape[i] for x in found) for i in (1, 2)]
        small = [x for x in found if list(x.shape[1:]) == size]
        return torch.stack(small)

    def _prepare(self, first: Tensor) -> None:
        teacher = self.pixels[1]
        if self.models['teacher'] is None or teacher is None:
            return
        student, channels = self.pixels[0], first.shape[1]
        try:
            self._convert = InputConverter(student, teacher, channels)
            self._convert.check(first)
        except ValueError as error:
            self.answers.refused, self._convert = error, None
        if channels in (1, 3):
            self._alive = conventions(student, teacher, pixel_values(first, student))
        self.answers.others = {convention: [] for convention in self._alive}

    def _prepared(self, batch: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            data = self.student.data_preprocessor(copy.deepcopy(batch), False)
        return data['inputs'], data.get('data_samples')

    def _readings(
        self, outputs: Any, samples: Any, images: Labelled, role: str = 'teacher'
    ) -> list[Reading]:
        found = read_outputs(outputs, samples, images.in_input_frame)
        if role == 'teacher' and self.answers.names is not None:
            found = [reading.renamed(self.answers.names) for reading in found]
        return found

    def _read_others(self, inputs: Tensor, samples: Any, images: Labelled) -> None:
        teacher = self.models['teacher']
        for convention in self._alive:
            converted = convention.converter(inputs.shape[1])(inputs, samples)
            outputs = predict(teacher, converted, samples)
            self.answers.others[convention] += self._readings(outputs, samples, images)

    def _drop(self) -> None:
        """Leaves out conventions that are not going to be better."""
        seen = len(next(iter(self.answers.others.values()), []))
        if self._convert is None or not any(seen >= n > self._looked for n in LOOKS):
            return
        self._looked = seen
        own = image_scores(self.answers.teacher, self.answers.comparable)
        kept = []
        for convention in self._alive:
            scores = image_scores(self.answers.others[convention], self.answers.comparable)
            gains = scores - own[: len(scores)]
            gains = gains[np.isfinite(gains)]
            error = gains.std() / max(len(gains), 1) ** 0.5
            if not len(gains) or gains.mean() + 2 * error > 0:
                kept.append(convention)
        self._alive = kept

    _looked = 0


def _same(inputs: Tensor, _samples: Any) -> Tensor:
    return inputs


def predict(model: AnyModule | None, inputs: Tensor, samples: Any) -> Any:
    """What a model answers in eval mode; neither it nor random states change."""
    assert model is not None
    # some heads of a teacher are not in eval mode
    with rng_kept(), torch.no_grad(), in_eval(model), _sized(samples, tuple(inputs.shape[2:])):
        torch.manual_seed(0)
        return model(inputs, samples, mode='predict')


@contextmanager
def _sized(samples: Any, size: tuple[int, ...]) -> Iterator[None]:
    """Samples that tell the size of a batch (of a teacher's, it may be another one) within."""
    samples = samples if isinstance(samples, (list, tuple)) else []
    told = [s.metainfo for s in samples if hasattr(s, 'batch_input_shape')]
    if all(tuple(meta['batch_input_shape']) == size for meta in told):
        yield
        return
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
    try:
        yield
    finally:
        for sample, meta in zip(samples, told):
            keys = ('batch_input_shape', 'pad_shape')
            sample.set_metainfo({key: meta[key] for key in keys if key in meta})


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """A model in eval mode within, and as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
