"""What training would refuse, as a finding: which function said no tells the code."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .findings import Report

# Functions of this package that refuse, and what it is that they refuse.
REFUSED_BY = {
    'refuse_other_classes': 'class-names',
    'resolve_class_map': 'class-names',
    'fit_class_map': 'class-names',
    '_check_form': 'refused',  # within check_heads
    '_check_counts': 'refused',
    'check_heads': 'class-names',
    '_refuse_unknown': 'normalization',
    'stated': 'normalization',
    'check_images': 'normalization',
    'check_levels': 'levels-misaligned',
    'check_maps': 'levels-misaligned',
    '_check_strides': 'levels-misaligned',
    'refuse_gradient_free': 'frozen-tap',
    'refuse_checkpointed': 'frozen-tap',
    'raise_if_not_finite': 'overflow',
}
_LONGEST = 600


def code_of(error: BaseException) -> str:
    """The code of a refusal; ``'refused'`` for one that has no code of its own."""
    if isinstance(error, CheckpointError):
        return 'bad-checkpoint'
    if isinstance(error, FileNotFoundError):
        return 'bad-checkpoint' if 'checkpoint' in str(error) else 'refused'
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    return next((REFUSED_BY[name] for name in reversed(names) if name in REFUSED_BY), 'refused')


def evidence_of(error: BaseException, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The numbers and names that a refusal brings along; else which kind it is, and who refused.

    Args:
        error: the refusal.
        known: what else is known of it.
    """
    if found := {**(known or {}), **getattr(error, 'evidence', {})}:
        return found
    frames = traceback.extract_tb(error.__traceback__)
    at = f'{Path(frames[-1].filename).stem}: {frames[-1].name}' if frames else None
    return dict(error=type(error).__name__, refused_by=at)


def note_refusal(
    report: Report, error: BaseException, where: str, known: dict[str, Any] | None = None
) -> None:
    """Adds the finding for what was refused; its message says what to change.

    Args:
        report: gets the finding.
        error: that training would stop with.
        where: it was refused.
        known: what else is known of it, for the evidence.
    """
    message = ' '.join(str(error).split()) or type(error).__name__
    if not isinstance(error, (ValueError, RuntimeError, OSError)):
        message = f'{type(error).__name__}: {message}'
    report.add(code_of(error), where, evidence_of(error, known), message[:_LONGEST])


def note_unexamined(report: Report, what: str, error: BaseException) -> None:
    """Adds the note on a check that could not be made."""
    message = f'{type(error).__name__}: {" ".join(str(error).split())}'
    report.add('not-examined', what, evidence_of(error), message[:_LONGEST])
