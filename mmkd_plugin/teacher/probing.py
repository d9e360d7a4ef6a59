"""One probe through both models, which shows what their taps will see."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..images.size import teacher_size
from ..taps import Recorder, TapPoint
from ..taps.body import Body
from ..taps.partial_forward import PartialForward
from ..taps.probe import Probe
from .handle import Teacher, teacher_view


def probe_both(
    student: nn.Module,
    recorder: Recorder,
    teacher: Teacher,
    points: Sequence[TapPoint],
    probe: Probe,
    body: Body,
) -> None:
    """Fills the student's recorder, and that of the teacher, which is connected.

    The student runs as deep as its ``points``, which lie in ``body``, ask for.
    """
    recorder.arm()
    paths = list(dict.fromkeys(body.inner(point.path) for point in points))
    forward = PartialForward(body.module, paths, 'student tap')
    with probe.explained(student, 'student'):
        inputs, samples = probe.run(body.module, forward)
    recorder.disarm()
    view = teacher_size(student)
    if view is not None and not probe.is_real:
        probe = Probe(view)
        inputs, samples = probe.inputs(student)
    with probe.explained(teacher.model, 'teacher'):
        teacher.run(teacher_view(inputs, samples), samples, compiled=False)
    assert teacher.recorder is not None
    for one in (recorder, teacher.recorder):
        # References everywhere; a copy only where the model overwrites its output.
        one.protect(one.overwritten())
