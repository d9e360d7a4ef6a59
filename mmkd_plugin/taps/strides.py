"""Strides of levels: measured on a probe image, and matched between two models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..images.pixels import of_preprocessor
from .partial_forward import PartialForward
from .paths import TapPoint
from .probe import Probe
from .recorder import Recorder

_LARGEST = 2**12  # no pyramid goes further


def matching(own: Sequence[int | None], theirs: Sequence[int | None]) -> list[int | None]:
    """Finds the level of equal stride for each level of another pyramid.

    Args:
        own: strides of the levels that look for a partner.
        theirs: strides of those to choose from.

    Returns:
        An index into ``theirs`` for each of ``own``, or None where none has its stride. Levels of
        one stride belong together in their order.

    Example:
        >>> matching((8, 16, 32, 64, 128), (4, 8, 16, 32))
        [1, 2, 3, None, None]
    """
    found: list[int | None] = []
    for stride in own:
        free = (i for i, other in enumerate(theirs) if other == stride and i not in found)
        found.append(next(free, None))
    return found


def measured_strides(
    model: nn.Module, path: str, probe: Probe, role: str, divisor: int | None = None
) -> list[int] | None:
    """Runs a model once on a probe, as deep as a module, to see the strides of its maps.

    Args:
        model: the model; it and all random states stay as they are.
        path: of the module.
        probe: its images, padded to what the model's own padding makes of them.
        role: ``'student'`` or ``'teacher'``, for messages.
        divisor: of the padded sizes; by default what the model's data preprocessor says.

    Returns:
        The stride of each map in pixels; None where the module gives other things than maps, or
        the inputs are no images.

    Raises:
        ProbeError: if the model does not run on the probe.
        TapError: if the module is not called.
    """
    if divisor is None:
        divisor = of_preprocessor(getattr(model, 'data_preprocessor', None)).divisor
    probe = probe.padded(divisor or 1)
    size = probe.size
    if size is None:
        return None
    recorder = Recorder(model, role)
    forward = PartialForward(model, [path], f'{role} tap')
    recorder.listen([TapPoint(path)])
    recorder.arm()
    try:
        with probe.explained(model, role):
            probe.run(model, forward)
        maps = [capture.tensor for capture in recorder.read([TapPoint(path)])]
    finally:
        recorder.close()
    if any(m.dim() != 4 or 0 in m.shape for m in maps):
        return None
    return [_stride(size, m.shape[2:]) for m in maps]


def _stride(image: Sequence[int], level: Sequence[int]) -> int:
    """The power of two by which an image comes to such a map, else the nearest whole number."""
    stride = 1
    while stride <= _LARGEST:
        if [-(-side // stride) for side in image] == list(level):
            return stride
        stride *= 2
    return round(max(side / kept for side, kept in zip(image, level)))
