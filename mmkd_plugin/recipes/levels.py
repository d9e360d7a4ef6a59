"""Which levels of two necks a recipe compares: all where both have the same, else by stride.

Strides are measured: each model runs once on a probe image, no deeper than its neck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..images.pixels import of_preprocessor
from ..taps.body import body_of
from ..taps.foreign import AnyModule
from ..taps.probe import Probe
from ..taps.strides import matching, measured_strides

NECK, FPN = 'neck', 'neck.fpn_convs.*.conv'
# Necks whose `fpn_convs` are not, or not once per step, the maps the head sees.
_NOT_PLAIN_FPN = ('pafpn_convs', 'downsample_convs', 'rfp_steps')


class Pairing(NamedTuple):
    """Two taps whose levels belong together.

    Attributes:
        student: the tap in the student.
        teacher: the one in the teacher.
        remark: which levels were paired, in a sentence; empty where all of both are.
    """

    student: str | dict
    teacher: str | dict
    remark: str = ''


class Pyramid(NamedTuple):
    """The neck of one model.

    Attributes:
        who: the model, for messages.
        convs: number of ``neck.fpn_convs.*.conv`` if these are the maps the head gets, else None.
            An FPN may return more: each further map is one of them with positions left out.
        outputs: how many maps the neck returns, as far as it says so.
        strides: of these maps; None if nobody knows.
    """

    who: str
    convs: int | None
    outputs: int | None
    strides: list[int] | None

    @property
    def own_strides(self) -> list[int] | None:
        """Of the maps that are computed, and not picked from another one."""
        return None if self.strides is None else self.strides[: self.convs]


def pair_necks(name: str, student: nn.Module, teacher: nn.Module, probe: Probe) -> Pairing:
    """Chooses the levels of two models with necks.

    Args:
        name: of the recipe, for messages.
        student: the model to train.
        teacher: the model to learn from.
        probe: by which strides are measured.

    Returns:
        Taps of the bodies of both.

    Raises:
        ValueError: no stride in common, or different numbers of levels of unknown strides.
        ProbeError: a model that does not run on the probe.
    """
    own, theirs = _pyramid(student, 'student', probe), _pyramid(teacher, 'teacher', probe)
    both_fpn = own.convs is not None and theirs.convs is not None
    path = FPN if both_fpn else NECK
    if own.strides is None or theirs.strides is None:
        counts = (own.convs, theirs.convs) if both_fpn else (own.outputs, theirs.outputs)
        if None not in counts and counts[0] != counts[1]:
            raise ValueError(_unknown(name, own, theirs, counts, both_fpn))
        return Pairing(path, path)
    strides = [p.own_strides if both_fpn else p.strides for p in (own, theirs)]
    if strides[0] == strides[1]:
        return Pairing(path, path)
    return _by_stride(name, own, theirs)


def _by_stride(name: str, own: Pyramid, theirs: Pyramid) -> Pairing:
    strides, others = own.own_strides or [], theirs.own_strides or []
    pairs = [(i, j) for i, j in enumerate(matching(strides, others)) if j is not None]
    if not pairs:
        raise ValueError(
            f'The recipe {name!r} pairs levels of equal stride, and the necks have none: the '
            f'levels of the {own.who} have strides {_listed(strides)}, those of the {theirs.who} '
            f'{_listed(others)}. Distil logits, or write the terms with the pairs that you want '
            f"and resize='bilinear': student=dict(path={NECK!r}, levels=[0]), "
            f'teacher=dict(path={NECK!r}, levels=[0]).'
        )
    taken, given = [i for i, _ in pairs], [j for _, j in pairs]
    shared = _listed([strides[i] for i in taken])
    remark = (
        f'Levels are paired by stride, {shared}: {_listed(taken)} of the {own.who}, whose '
        f'strides are {_listed(strides)}, with {_listed(given)} of the {theirs.who}, whose '
        f'strides are {_listed(others)} (levels of the neck, from 0).'
    )
    return Pairing(dict(path=NECK, levels=taken), dict(path=NECK, levels=given), remark)


def _unknown(
    name: str, own: Pyramid, theirs: Pyramid, counts: tuple[int | None, ...], both_fpn: bool
) -> str:
    return (
        f'The recipe {name!r} cannot pair {counts[0]} {"FPN" if both_fpn else "neck"} levels of '
        f'the {own.who} with {counts[1]} of the {theirs.who}: which of them share a stride is not '
        'known here. Run tools/inspect_model.py CONFIG --teacher CONFIG, and name the pairs in '
        "terms, for example student=dict(path='neck', levels=[0, 1, 2]), "
        "teacher=dict(path='neck', levels=[1, 2, 3])."
    )


def _pyramid(model: AnyModule, role: str, probe: Probe) -> Pyramid:
    body = body_of(model)
    neck = body.module.neck
    strides = None
    if hasattr(body.module, 'extract_feat'):
        divisor = of_preprocessor(getattr(model, 'data_preprocessor', None)).divisor
        strides = measured_strides(body.module, NECK, probe, role, divisor)
    return Pyramid(f'{role} ({type(model).__name__})', _fpn_convs(neck), _count(neck), strides)


def _fpn_convs(neck: nn.Module) -> int | None:
    convs = getattr(neck, 'fpn_convs', None)
    if not isinstance(convs, nn.ModuleList) or any(hasattr(neck, a) for a in _NOT_PLAIN_FPN):
        return None
    if len(convs) == 0 or not all(isinstance(getattr(c, 'conv', None), nn.Module) for c in convs):
        return None
    return len(convs)


def _count(neck: nn.Module) -> int | None:
    if isinstance(neck, (nn.Sequential, nn.ModuleList)) and len(neck):
        neck = neck[-1]
    for attribute in ('num_outs', 'num_levels'):
        if isinstance(getattr(neck, attribute, None), int):
            return getattr(neck, attribute)
    convs = getattr(neck, 'out_convs', None)
    return len(convs) if isinstance(convs, nn.ModuleList) else None


def _listed(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))
