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

from .families import family

# Families whose knowledge sits in the last backbone stage; all others are tapped at the neck.
_BACKBONE_FAMILIES = ('semantic', 'classification')
# Necks whose `fpn_convs` are not, or not once per step, the maps the head sees.
_NOT_PLAIN_FPN = ('pafpn_convs', 'downsample_convs', 'rfp_steps')


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


def plan(name: str, student: nn.Module, teacher: nn.Module) -> dict:
    """Terms of a feature recipe; the student's family decides on the numbers."""
    recipe, kind = RECIPES[name], family(student)
    weight, arguments, _ = recipe.settings(kind)
    student_tap, teacher_tap = _taps(name, student, teacher)
    term = dict(
        loss=dict(type=recipe.loss, **arguments),
        student=student_tap,
        teacher=teacher_tap,
        weight=weight,
    )
    return dict(terms=[term], task_weight=1.0, kind=kind)


Tap = str | dict


def _taps(name: str, student: nn.Module, teacher: nn.Module) -> tuple[Tap, Tap]:
    """Chooses the place: FPN output convolutions, neck outputs, or the last backbone stage."""
    neckless = [m for m in (student, teacher) if _neck(m) is None]
    if neckless:
        # One side without a neck: the last backbone stage is the only role both play.
        return _last_stage(name, student, 'student'), _last_stage(name, teacher, 'teacher')

    convs = _fpn_convs(student), _fpn_convs(teacher)
    if None not in convs and convs[0] == convs[1]:
        return 'neck.fpn_convs.*.conv', 'neck.fpn_convs.*.conv'
    levels = _neck_levels(student), _neck_levels(teacher)
    both_fpn = None not in convs
    if both_fpn or (None not in levels and levels[0] != levels[1]):
        # Two FPNs with equal outputs but other convolutions start at different strides.
        counts, what = (convs, 'FPN levels') if both_fpn else (levels, 'neck levels')
        raise ValueError(
            f'The recipe {name!r} cannot pair {counts[0]} {what} of the student '
            f'({type(student).__name__}) with {counts[1]} of the teacher '
            f'({type(teacher).__name__}): which of them share a stride is not known here. '
            'Run tools/inspect_model.py CONFIG --teacher CONFIG, and name the pairs in terms, '
            "for example student=dict(path='neck', levels=[0, 1, 2]), "
            "teacher=dict(path='neck', levels=[1, 2, 3])."
        )
    return 'neck', 'neck'


def _neck(model: nn.Module) -> nn.Module | None:
    if family(model) in _BACKBONE_FAMILIES:
        return None
    neck = getattr(model, 'neck', None)
    return neck if isinstance(neck, nn.Module) else None


def _fpn_convs(model: nn.Module) -> int | None:
    """Number of ``neck.fpn_convs.*.conv`` if these are the maps the head gets, else None."""
    neck = _neck(model)
    convs = getattr(neck, 'fpn_convs', None)
    if not isinstance(convs, nn.ModuleList) or any(hasattr(neck, a) for a in _NOT_PLAIN_FPN):
        return None
    if len(convs) == 0 or not all(isinstance(getattr(c, 'conv', None), nn.Module) for c in convs):
        return None
    return len(convs)


def _neck_levels(model: nn.Module) -> int | None:
    """How many maps the neck returns, as far as it says so; None leaves it to the probe."""
    neck = _neck(model)
    if isinstance(neck, (nn.Sequential, nn.ModuleList)) and len(neck):
        neck = neck[-1]
    for attribute in ('num_outs', 'num_levels'):
        if isinstance(getattr(neck, attribute, None), int):
            return getattr(neck, attribute)
    for attribute in ('out_convs',):
        if isinstance(getattr(neck, attribute, None), nn.ModuleList):
            return len(getattr(neck, attribute))
    return None


def _last_stage(name: str, model: nn.Module, role: str) -> Tap:
    if not isinstance(getattr(model, 'backbone', None), nn.Module):
        children = ', '.join(child for child, _ in model.named_children()) or 'none'
        raise ValueError(
            f'The recipe {name!r} looks for the last stage of `backbone`, which the {role} '
            f'({type(model).__name__}) does not have (its sub-modules: {children}). '
            'Write the terms yourself; tools/inspect_model.py (mmkd inspect) lists the paths.'
        )
    return dict(path='backbone', levels=[-1])
