"""Whether the teacher is trained, and stays as it is while it runs."""

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
from .readings import Reading, image_scores

UNCHANGED = 0.9  # share of tensors from which on a part counts as not trained
# The same of a whole model, of which a file may have filled some: a training changes nearly all.
UNCHANGED_OF_ALL = 0.25
FEWEST_IMAGES = 10
# Most advantage over chance of a teacher that knows nothing: where the advantage is sure, where it
# is not, and where its head looks like a random one.
CLEARLY_NOTHING, HARDLY, BY_LUCK = 0.02, 0.1, 0.25
GENERAL = 0.3  # share of its score, above which a teacher speaks of the image it sees
CLEARLY = 0.2  # of a teacher that knows something, whatever its weights look like
_BODY = ('backbone', 'neck')
_NEVER_USED = ('auxiliary', 'aux_', 'data_preprocessor')


# -- untrained -------------------------------------------------------------------------------------


@dataclass
class Fresh:
    """What the weights of a model tell of its training.

    Attributes:
        unchanged: share of tensors that are those of the initialisation, by part.
        untouched: share of batch norms that have seen no image; None without any.
        unloaded: whether the config names no checkpoint.
        overall: share of tensors of the whole model that are those of the initialisation.
        maybe: whether the values of a head might be those of an initialisation.
    """

    unchanged: dict[str, float] = field(default_factory=dict)
    untouched: float | None = None
    unloaded: bool = False
    overall: float = 0.0
    maybe: bool = False

    @property
    def parts(self) -> list[str]:
        """Parts that were never trained."""
        return [part for part, share in self.unchanged.items() if share >= UNCHANGED]

    def __bool__(self) -> bool:
        untouched = self.untouched is not None and self.untouched >= UNCHANGED_OF_ALL
        return bool(self.parts) or untouched or self.unloaded or self.overall >= UNCHANGED_OF_ALL


def look_for_fresh(model: AnyModule, config: dict) -> Fresh:
    """Compares the weights of a teacher with those of two initialisations.

    Tensors that any initialisation makes equal tell most, such as biases of 0 and weights of norms
    of 1: a training changes every one of them, unless it is frozen. The values of random ones can
    only be compared as a whole.

    Args:
        model: the teacher.
        config: the ``teacher`` of a DistillHook; empty where there is none.
    """
    if not config:
        return Fresh()
    cfg = load_model_config(config['config'], config.get('cfg_options'), 'teacher')
    if isinstance(cfg.model, nn.Module):
        return Fresh()
    new = [_initialised(cfg, seed) for seed in (0, 1)]
    first, second = (dict(each.named_parameters()) for each in new)
    own = {name: p.detach().cpu() for name, p in model.named_parameters()}
    fixed: dict[str, list[bool]] = {}
    random: dict[str, list[bool]] = {}
    for name, value in first.items():
        part = name.split('.')[0]
        known = name in own and own[name].shape == value.shape
        if not (known and value.requires_grad) or part.startswith(_NEVER_USED):
            continue
        if torch.equal(value, second[name]):
            fixed.setdefault(part, []).append(torch.equal(own[name], value.to(own[name])))
        elif value.dim() > 1 and not part.startswith(_BODY):
            drawn = torch.cat([value.flatten(), second[name].flatten()])
            random.setdefault(part, []).append(_is_alike(own[name].flatten(), drawn))
    return Fresh(
        {part: _share(same) for part, same in fixed.items()},
        untouched_norms(model, new[0].train()),
        config.get('checkpoint') is None,
        _share([same for part in fixed.values() for same in part]),
        any(all(alike) for alike in random.values()),
    )


def _share(same: Sequence[bool]) -> float:
    return sum(same) / len(same) if same else 0.0


def _is_alike(values: Tensor, others: Tensor) -> bool:
    """Whether two sets of numbers may be of one distribution (Kolmogorov and Smirnov, 5 %)."""
    values, others = values.double().sort()[0], others.detach().double().sort()[0]
    places = torch.cat([values, others])
    shares = [torch.searchsorted(x, places, right=True) / len(x) for x in (values, others)]
    limit = 1.36 * (1 / len(values) + 1 / len(others)) ** 0.5
    return float((shares[0] - shares[1]).abs().max()) < limit


def _initialised(cfg: Any, seed: int) -> nn.Module:
    with rng_kept():
        torch.manual_seed(seed)
        np.random.seed(seed)
        model = build_model(copy.deepcopy(cfg))
        draw_weights(model)
        return model


def untouched_norms(model: nn.Module, in_training: nn.Module) -> float | None:
    """Share of batch norms that have seen no image; None without any that would.

    Args:
        model: the teacher.
        in_training: the same network as a training has it, where norms of a backbone often rest.
    """
    active = {name for name, m in in_training.named_modules() if _counts(m) and m.training}
    norms = [m for name, m in model.named_modules() if name in active and _counts(m)]
    if not norms:
        return None
    new = [_is(m.running_mean, 0.0) and _is(m.running_var, 1.0) for m in norms]
    return sum(new) / len(new)


def _counts(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _is(values: Tensor | None, number: float) -> bool:
    return values is not None and bool((values == number).all())


def advantage(readings: Sequence[Reading], by_class: bool = True) -> Difference:
    """What answers to the own image are worth more than the same answers to other images.

    A model that says the same of every image, or speaks at random, has none.

    Args:
        readings: of the model.
        by_class: whether of eight classes or more each class counts once.
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
    if by_class and len(set(classes)) >= 8:
        return difference(np.array([values[labels == c].mean() for c in sorted(set(classes))]))
    return difference(values)


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
    # A random head treats a class alike, so images say more than they know: only a head that was
    # trained is judged by them.
    by_images = advantage(readings, by_class=False)
    limit = CLEARLY_NOTHING if known.p <= 0.01 else BY_LUCK if fresh.maybe else HARDLY
    doubtful = fresh.maybe or by_images.p > 0.001
    own = [s for s in image_scores(readings) if s == s]
    # Of a real teacher, however weak and unsure, most of the score is for its own image.
    general = known.mean <= GENERAL * float(np.mean(own)) if own else True
    ignorant = enough and not exempt and doubtful and general and known.upper < limit
    if not (ignorant or (fresh and not knows)):
        return True
    evidence = dict(
        unchanged_tensors=fresh.unchanged,
        unchanged_of_all=fresh.overall,
        untouched_norms=fresh.untouched,
        advantage_over_chance=known.mean if images else None,
        p=known.p if images else None,
        images=images,
    )
    report.add('untrained-teacher', 'teacher.checkpoint', evidence, _advice(fresh.parts))
    return False


def _advice(fresh: list[str]) -> str:
    which = f'  # {", ".join(fresh)} of the present file: never trained' if fresh else ''
    return f'teacher=dict(..., checkpoint=FILE_OF_THE_TRAINED_TEACHER){which}'


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
        try:
            found = model(images, samples, mode='tensor')
        except Exception:  # instance segmenters want what only their own steps have
            found = model.extract_feat(images)
    leaves, _ = tree_flatten(found)
    return [value.float() for value in leaves if isinstance(value, Tensor)]
