"""Whether the teacher is trained, stays as it is, and is better than the student."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten

from ..model_config import load_model_config
from ..rng import rng_kept
from ..taps.foreign import AnyModule
from ..teacher import build_model, draw_weights
from .findings import Report
from .paired import Difference, difference
from .readings import Reading, all_objects, image_scores

UNCHANGED = 0.9  # share of tensors from which on a part counts as not trained
FEWEST_IMAGES = 10
# Most advantage over chance of a teacher that knows nothing: where the advantage is sure, where it
# is not, and where of many classes no more are right than by chance.
CLEARLY_NOTHING, HARDLY, BY_LUCK = 0.02, 0.1, 0.25
CLEARLY = 0.2  # of a teacher that knows something, whatever its weights look like
EQUAL = 0.02  # difference of mean scores, and of shares, below which two models are alike
_NEVER_USED = ('auxiliary', 'aux_', 'data_preprocessor')


# -- untrained -------------------------------------------------------------------------------------


def unchanged_parts(model: AnyModule, config: dict) -> dict[str, float]:
    """Share of tensors that are those of the initialisation, for each part of a model.

    Only tensors that any initialisation makes equal tell it, such as biases of 0 and weights of
    norms of 1. A training changes every one of them, unless it is frozen.

    Args:
        model: the teacher.
        config: the ``teacher`` of a DistillHook.
    """
    cfg = load_model_config(config['config'], config.get('cfg_options'), 'teacher')
    if isinstance(cfg.model, nn.Module):
        return {}
    first, second = (_initialised(cfg, seed) for seed in (0, 1))
    own = {name: p.detach().cpu() for name, p in model.named_parameters()}
    counts: dict[str, list[bool]] = {}
    for name, value in first.items():
        part = name.split('.')[0]
        fixed = value.requires_grad and torch.equal(value, second[name]) and name in own
        if fixed and not part.startswith(_NEVER_USED):
            same = own[name].shape == value.shape and torch.equal(own[name], value.to(own[name]))
            counts.setdefault(part, []).append(same)
    return {part: sum(same) / len(same) for part, same in counts.items()}


def _initialised(cfg: Any, seed: int) -> dict[str, nn.Parameter]:
    with rng_kept():
        torch.manual_seed(seed)
        np.random.seed(seed)
        model = build_model(copy.deepcopy(cfg))
        draw_weights(model)
        return dict(model.named_parameters())


def untouched_norms(model: nn.Module) -> float | None:
    """Share of batch norms that have seen no image; None without any."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return None
    new = [_is(m.running_mean, 0.0) and _is(m.running_var, 1.0) for m in norms]
    return sum(new) / len(new)


def _is(values: Tensor | None, number: float) -> bool:
    return values is not None and bool((values == number).all())


def advantage(readings: Sequence[Reading]) -> Difference:
    """What answers to the own image are worth more than the same answers to other images.

    A model that says the same of every image, or speaks at random, has none. Of eight classes or
    more the classes are the units of the test, since a random head treats a class alike.
    """
    scores, classes = [], []
    count = len(readings)
    others = [k for k in (1, 2, 3) if k < count]
    shuffled = np.random.default_rng(0).permutation(count)
    for at, place in enumerate(shuffled):
        own = readings[place].objects()
        strange = [readings[place].objects(readings[shuffled[(at + k) % count]]) for k in others]
        strange = [objects for objects in strange if len(objects.score)]
        if len(own.score) and strange:
            scores.append(own.score.mean() - np.mean([o.score.mean() for o in strange]))
            classes.append(int(np.bincount(own.label).argmax()))
    values, labels = np.array(scores), np.array(classes)
    if len(set(classes)) >= 8:
        return difference(np.array([values[labels == c].mean() for c in sorted(set(classes))]))
    return difference(values)


@dataclass
class Fresh:
    """What the weights of a model tell of its training.

    Attributes:
        unchanged: share of tensors that are those of the initialisation, by part.
        untouched: share of batch norms that have seen no image; None without any.
        unloaded: whether the config names no checkpoint.
    """

    unchanged: dict[str, float] = field(default_factory=dict)
    untouched: float | None = None
    unloaded: bool = False

    @property
    def parts(self) -> list[str]:
        """Parts that were never trained."""
        return [part for part, share in self.unchanged.items() if share >= UNCHANGED]

    def __bool__(self) -> bool:
        untouched = self.untouched is not None and self.untouched >= UNCHANGED
        return bool(self.parts) or untouched or self.unloaded


def look_for_fresh(model: AnyModule, config: dict) -> Fresh:
    """Looks at the weights of a teacher.

    Args:
        model: the teacher.
        config: the ``teacher`` of a DistillHook; empty where there is none.
    """
    if not config:
        return Fresh()
    unloaded = config.get('checkpoint') is None and not _is_live(config)
    return Fresh(unchanged_parts(model, config), untouched_norms(model), unloaded)


def check_trained(fresh: Fresh, readings: Sequence[Reading], exempt: bool, report: Report) -> bool:
    """Adds the finding for a teacher that was never trained.

    Args:
        fresh: what its weights tell. Answers that are clearly better than chance win over it.
        readings: of the teacher.
        exempt: whether its images or classes are wrong, so that its answers say nothing.
        report: gets the finding.

    Returns:
        Whether it may teach.
    """
    known = advantage(readings)
    images = sum(len(reading.objects().label) > 0 for reading in readings)
    enough = images >= FEWEST_IMAGES
    knows = enough and known.p <= 0.01 and known.mean > CLEARLY
    ignorant = enough and not exempt and known.upper < _most_by_chance(known, readings)
    if not (ignorant or (fresh and not knows)):
        return True
    evidence = dict(
        unchanged_tensors=fresh.unchanged,
        untouched_norms=fresh.untouched,
        advantage_over_chance=known.mean if images else None,
        p=known.p if images else None,
        images=images,
    )
    report.add('untrained-teacher', 'teacher.checkpoint', evidence, _advice(fresh.parts))
    return False


def _most_by_chance(known: Difference, readings: Sequence[Reading]) -> float:
    """The advantage that a teacher that knows nothing may seem to have."""
    if known.p <= 0.01:
        return CLEARLY_NOTHING
    objects = all_objects(readings)
    labels = np.unique(objects.label)
    recall = np.mean([objects.right[objects.label == label].mean() for label in labels])
    return BY_LUCK if len(labels) >= 8 and recall <= 1.5 / len(labels) else HARDLY


def _is_live(config: dict) -> bool:
    model = config.get('config')
    return isinstance(getattr(model, 'model', model), nn.Module)


def _advice(fresh: list[str]) -> str:
    which = f'  # {", ".join(fresh)} of the present file: never trained' if fresh else ''
    return f'teacher=dict(..., checkpoint=FILE_OF_THE_TRAINED_TEACHER){which}'


# -- better than the student -----------------------------------------------------------------------


def check_better(
    teacher: Sequence[Reading], student: Sequence[Reading], of_classes: bool, report: Report
) -> Difference | None:
    """Adds the finding for a teacher that is worse than the student, or just as good.

    Returns:
        The difference of the scores on each image; None without readings of both.
    """
    if not teacher or len(teacher) != len(student):
        return None
    gain = difference(image_scores(teacher, of_classes) - image_scores(student, of_classes))
    loss = difference(image_scores(student, of_classes) - image_scores(teacher, of_classes))
    own, theirs = all_objects(student), all_objects(teacher)
    evidence = dict(
        gain=gain.mean,
        error=gain.error,
        p=min(gain.p, loss.p),
        images=gain.count,
        teacher_right=_share(theirs.right),
        student_right=_share(own.right),
        teacher_iou=_mean(theirs.iou),
        student_iou=_mean(own.iou),
    )
    gap = evidence['teacher_right'] - evidence['student_right']
    if loss.p < 0.05 and loss.mean > 0:
        report.add('weak-teacher', 'teacher', evidence, 'teacher=dict(config=..., checkpoint=...)')
    elif abs(gain.mean) < EQUAL and gap < EQUAL:
        report.add(
            'nothing-to-learn', 'teacher', evidence, 'teacher=dict(config=..., checkpoint=...)'
        )
    return gain


def own_metrics(readings: Sequence[Reading]) -> dict[str, float]:
    """Numbers that every model has: shares of objects that are right and found, and their IoU."""
    objects = all_objects(readings)
    if not len(objects.label):
        return {}
    found = dict(
        right=_share(objects.right), found=_share(objects.said >= 0), iou=_mean(objects.iou)
    )
    scores = image_scores(readings)
    found['score'] = _mean(scores)
    return {f'objects/{key}': value for key, value in found.items() if value == value}


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float('nan')


# -- stays as it is --------------------------------------------------------------------------------


def check_still(model: AnyModule, images: Tensor, samples: Any, report: Report) -> None:
    """Adds the finding for a teacher that changes while it runs, or answers at random.

    Args:
        model: the teacher, frozen and in eval mode as training has it.
        images: a batch for it.
        samples: its data samples.
        report: gets the finding.
    """
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    training = [
        name
        for name, module in model.named_modules()
        if module.training and (isinstance(module, kinds) or type(module).__name__ == 'DropPath')
    ]
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with rng_kept():
        first, second = (_outputs(model, images, samples) for _ in range(2))
    moved = [n for n, buffer in model.named_buffers() if not torch.equal(before[n], buffer)]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in moved:
                buffer.copy_(before[name])
    change = max(
        (float((a - b).abs().max() / (a.abs().max() + 1e-12)) for a, b in zip(first, second)),
        default=0.0,
    )
    if not (training or moved or change > 1e-3):
        return
    evidence = dict(
        modules_in_training=len(training), buffers_that_move=len(moved), change_of_outputs=change
    )
    first_name = next(iter([*training, *moved]), 'a module that draws random numbers')
    advice = (
        f'teacher: {first_name} must rest in eval mode (train(False), no F.dropout(training=True))'
    )
    report.add('teacher-in-training-mode', 'teacher', evidence, advice)


def _outputs(model: AnyModule, images: Tensor, samples: Any) -> list[Tensor]:
    """All that a model gives, twice not the same if it draws random numbers."""
    with torch.no_grad():
        found = model(images, samples, mode='tensor')
    leaves, _ = tree_flatten(found)
    return [value.float() for value in leaves if isinstance(value, Tensor)]
