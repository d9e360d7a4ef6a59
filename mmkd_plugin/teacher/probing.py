"""One probe image through both models, which shows what their taps will see."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..images.size import teacher_size
from ..taps import Recorder, TapPoint
from ..taps.partial_forward import PartialForward, probe, probe_explained, probe_inputs
from .handle import Teacher


def probe_both(
    student: nn.Module,
    recorder: Recorder,
    teacher: Teacher,
    points: Sequence[TapPoint],
    size: Sequence[int],
) -> None:
    """Fills the student's recorder, and that of the teacher, which is connected.

    The student runs as deep as its ``points`` ask for.
    """
    recorder.arm()
    paths = list(dict.fromkeys(point.path for point in points))
    forward = PartialForward(student, paths, 'student tap')
    with probe_explained(student, size, 'student'):
        image, samples = probe(student, forward, size)
    recorder.disarm()
    view = teacher_size(student)
    if view is not None:
        image, samples = probe_inputs(student, view)
    with probe_explained(teacher.model, image.shape[2:], 'teacher'):
        teacher.run(image, samples, compiled=False)
    assert teacher.recorder is not None
    for one in (recorder, teacher.recorder):
        # References everywhere; a copy only where the model overwrites its output.
        one.protect(one.overwritten())
