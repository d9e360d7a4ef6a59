"""In a step: tensors at module paths."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import TapError
from ...taps import Capture


def check_levels(own: Sequence[Capture], theirs: Sequence[Capture]) -> None:
    """Refuses taps that give different numbers of levels.

    Raises:
        TapError: with the shapes of both.
    """
    if len(own) != len(theirs):
        raise TapError(
            f'the student tap gives {len(own)} levels ({_shapes(own)}) and the teacher tap '
            f'{len(theirs)} ({_shapes(theirs)}). Choose the same ones on both sides, for example '
            'with dict(path=..., levels=[...]).',
            student_sizes=[list(c.tensor.shape[2:]) for c in own],
            teacher_sizes=[list(c.tensor.shape[2:]) for c in theirs],
        )


def _shapes(captures: Sequence[Capture]) -> str:
    return ', '.join(f'{c.label} {tuple(c.tensor.shape)}' for c in captures)


def check_maps(s: Capture, t: Capture, resize: str | None, copies: int) -> None:
    """Refuses two tensors of a level whose sizes, or whose images, do not correspond.

    Raises:
        TapError: with both shapes.
    """
    s_size, t_size = s.tensor.shape[2:], t.tensor.shape[2:]
    if s.tensor.dim() != t.tensor.dim() or (s_size != t_size and resize is None):
        raise TapError(
            f'sizes differ: student {s.label!r} is {tuple(s.tensor.shape)}, '
            f'teacher {t.label!r} is {tuple(t.tensor.shape)}. Tap levels of the same stride '
            "(tools/inspect_model.py shows them), or add resize='bilinear' to the term.",
            student_size=list(s_size),
            teacher_size=list(t_size),
        )
    images = [list(x.tensor.shape[:1]) for x in (s, t)]  # a probe may run one branch only
    if images[0] not in (images[1], [copies * n for n in images[1]]):
        raise TapError(
            f'student {s.label!r} is {tuple(s.tensor.shape)}, teacher '
            f'{t.label!r} is {tuple(t.tensor.shape)}: their first dimensions differ, so the '
            'images of one are not those of the other. Of models that repeat their batch only '
            'TridentNet (num_branch) is known; else tap a module in front of that.',
            student_images=images[0][0],
            teacher_images=images[1][0],
        )
