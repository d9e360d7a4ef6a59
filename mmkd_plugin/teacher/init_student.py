"""Start a student from its teacher's neck and heads ("inheriting")."""

from __future__ import annotations

import logging

import torch
from mmengine.logging import print_log
from torch import nn

from ..checks import nearest

PARTS = ('backbone', 'neck', 'head')


def parse_parts(parts: str) -> list[str]:
    """Splits ``'neck+head'``.

    Raises:
        ValueError: naming the unknown part.
    """
    found = [part.strip() for part in str(parts).split('+')]
    for part in found:
        if part not in PARTS:
            raise ValueError(
                f'init_student={parts!r}: {part!r} is no part; {nearest(part, PARTS)}. '
                "Join several with '+', as in 'neck+head'."
            )
    return found


def _part_of(key: str) -> str:
    root = key.split('.')[0]
    return 'head' if root == 'head' or root.endswith('_head') else root


def copy_teacher_weights(student: nn.Module, teacher: nn.Module, parts: str) -> tuple[list, list]:
    """Copies entries of equal name and shape from the teacher, and reports what was copied.

    ``parts`` are ``'backbone'``, ``'neck'`` and ``'head'`` (every ``*_head``), joined by ``+``.

    Returns:
        The copied keys and the skipped keys of these parts.

    Raises:
        ValueError: if nothing fits.
    """
    wanted = parse_parts(parts)
    own = {k: v for k, v in student.state_dict().items() if _part_of(k) in wanted}
    source = teacher.state_dict()
    copied = [k for k, v in own.items() if k in source and source[k].shape == v.shape]
    skipped = [k for k in own if k not in copied]
    if not copied:
        raise ValueError(
            f'init_student={parts!r}: no entry of the student has the name and shape '
            f'of a teacher entry (first of the student: {next(iter(own), None)!r}). '
            'Leave init_student out for this pair.'
        )
    with torch.no_grad():
        for key in copied:
            own[key].copy_(source[key])
    print_log(
        f'init_student={parts!r}: {len(copied)} entries copied from the teacher'
        + (
            f'; {len(skipped)} kept because name or shape differ: {", ".join(skipped[:10])}'
            f'{" ..." if len(skipped) > 10 else ""}'
            if skipped
            else ''
        ),
        'current',
        logging.INFO,
    )
    return copied, skipped
