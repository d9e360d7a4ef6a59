"""Recipes on feature maps: which loss, which weight for which family, and which modules.

A recipe speaks in roles ("the neck's levels", "the last backbone stage"), not in module paths. The
roles are resolved by what a model has, never by its class name, so a detector of your own is
served like a stock one.

Evidence for every number below: *official code* = the method's own repository, *mmrazor* = the
configs of mmrazor 1.0 for mmdet 3.x, *recommended* = a choice of this project with no published
value behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..taps.body import body_of
from ..taps.probe import Probe
from ..views.tokens import last_tokens
from .families import family
from .levels import Pairing, pair_necks

# Families whose knowledge sits in the last backbone stage; all others are tapped at the neck.
_BACKBONE_FAMILIES = ('semantic', 'pose', 'classification')


@dataclass(frozen=True)
class Recipe:
    """A method with the hyper-parameters of each family.

    Attributes:
        summary: one line for the tools' listings.
        settings: maps a family to ``(weight, arguments of the loss, source of the numbers)``.
        loss: registered name of the loss.
    """

    summary: str
    loss: str
    settings: Callable[[str], tuple[float, dict, str]]


def _gdd(noise: str) -> Callable[[str], tuple[float, dict, str]]:
    weights = {
        'two-stage': (4.0, 'official code, Faster R-CNN'),
        'one-stage': (65.0, 'official code, RepPoints'),
        'mask': (200.0, 'official code, SOLO'),
        'query-mask': (200.0, 'recommended: as for SOLO'),
        'semantic': (145.0, 'official code, PSPNet'),
        'pose': (145.0, "recommended: the official class's own default"),
        'classification': (145.0, "recommended: the official class's own default"),
    }

    def settings(family: str) -> tuple[float, dict, str]:
        weight, source = weights[family]
        return weight, dict(temperature=4.0, noise=noise), source

    return settings


def _cwd(family: str) -> tuple[float, dict, str]:
    if family in _BACKBONE_FAMILIES:
        return 50.0, dict(temperature=4.0), 'recommended'
    return (
        10.0,
        dict(temperature=1.0),
        'recommended; mmrazor uses it on the FPN of Faster R-CNN and RetinaNet',
    )


def _mgd(family: str) -> tuple[float, dict, str]:
    weight, mask_ratio, source = {
        'two-stage': (5e-7, 0.45, 'official code, Mask R-CNN'),
        'one-stage': (2e-5, 0.65, 'official code, RetinaNet'),
        'mask': (2e-5, 0.65, 'official code, SOLO'),
        'query-mask': (2e-5, 0.65, 'recommended: as for SOLO'),
        'semantic': (2e-5, 0.75, 'official code, PSPNet (without its extra logit term)'),
        'pose': (2e-5, 0.65, 'recommended: as for RetinaNet'),
        'classification': (7e-5, 0.15, 'official code, ResNet-34 to ResNet-18 on ImageNet'),
    }[family]
    # The published weights belong to a sum over channels and positions, divided by the batch. Only
    # the classifiers' official code hides channels; all others hide positions.
    mask = dict(mask='channel') if family == 'classification' else {}
    return weight, dict(mask_ratio=mask_ratio, normalize='batch', **mask), source


def _pkd(family: str) -> tuple[float, dict, str]:
    if family == 'two-stage':
        return 6.0, {}, 'mmrazor, Faster R-CNN'
    if family == 'one-stage':
        return 10.0, {}, 'mmrazor, RetinaNet and RepPoints (there on the first four levels)'
    return 6.0, {}, 'recommended'


RECIPES = {
    'gdd': Recipe(
        'noise + generator + channel-wise KL; a new noise map for each channel',
        'GDDLoss',
        _gdd('channel'),
    ),
    'gdd-shared': Recipe(
        'GDD as its official code: one noise map for all channels', 'GDDLoss', _gdd('shared')
    ),
    'cwd': Recipe('KL between spatial softmaxes, channel by channel', 'CWDLoss', _cwd),
    'mgd': Recipe('masked generation, squared error', 'MGDLoss', _mgd),
    'pkd': Recipe('squared error of normalised features (Pearson correlation)', 'PKDLoss', _pkd),
}


def source(name: str, model: nn.Module) -> str:
    """Where the hyper-parameters come from for this kind of model."""
    return RECIPES[name].settings(family(model))[2]


def plan(name: str, student: nn.Module, teacher: nn.Module, probe: Probe) -> dict:
    """The term of a feature recipe; the student's family decides on the numbers.

    Args:
        name: a key of ``RECIPES``.
        student: the model to train.
        teacher: the model to learn from.
        probe: by which strides are measured.

    Returns:
        ``dict(terms=[...], task_weight=1.0, kind=..., remark=...)``; ``remark`` says which levels
        were paired where these are not all of both.

    Raises:
        ValueError: places that cannot be compared.
    """
    recipe, kind = RECIPES[name], family(student)
    weight, arguments, _ = recipe.settings(kind)
    pairing = _pair(name, student, teacher, probe)
    term = dict(
        loss=dict(type=recipe.loss, **arguments),
        student=_outer(student, pairing.student),
        teacher=_outer(teacher, pairing.teacher),
        weight=weight,
    )
    return dict(terms=[term], task_weight=1.0, kind=kind, remark=pairing.remark)


def _outer(model: nn.Module, tap: str | dict) -> str | dict:
    """A tap of the model's body as one of the model."""
    outer = body_of(model).outer
    return outer(tap) if isinstance(tap, str) else dict(tap, path=outer(tap['path']))


def _pair(name: str, student: nn.Module, teacher: nn.Module, probe: Probe) -> Pairing:
    """Chooses the place: levels of the necks, or the last backbone stage."""
    if _neck(student) is None or _neck(teacher) is None:
        # One side without a neck: the last backbone stage is the only role both play.
        return Pairing(_last_stage(name, student, 'student'), _last_stage(name, teacher, 'teacher'))
    return pair_necks(name, student, teacher, probe)


def _neck(model: nn.Module) -> nn.Module | None:
    if family(model) in _BACKBONE_FAMILIES:
        return None
    neck = getattr(body_of(model).module, 'neck', None)
    return neck if isinstance(neck, nn.Module) else None


def _last_stage(name: str, model: nn.Module, role: str) -> dict:
    body = body_of(model).module
    if not isinstance(getattr(body, 'backbone', None), nn.Module):
        children = ', '.join(child for child, _ in model.named_children()) or 'none'
        raise ValueError(
            f'The recipe {name!r} looks for the last stage of `backbone`, which the {role} '
            f'({type(model).__name__}) does not have (its sub-modules: {children}). '
            'Write the terms yourself; tools/inspect_model.py (mmkd inspect) lists the paths.'
        )
    return last_tokens(body.backbone) or dict(path='backbone', levels=[-1])
