"""Lists the places of a model that can be tapped, for ``mmkd inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import TapError
from ..images.size import image_size
from .partial_forward import PartialForward
from .paths import TapPoint
from .probe import Probe
from .recorder import Recorder


@dataclass(frozen=True)
class Place:
    """One module that was called with tensors.

    Attributes:
        path: module path, as a tap names it.
        kind: class name of the module.
        shape: shape of the first tensor of its first call on the probe image.
        shapes: shapes of all tensors of all calls, in the order of a tap's levels.
        stride: probe height over map height, or ``None`` where the output is not a map.
        calls: how often the module was called in one step.
    """

    path: str
    kind: str
    shape: tuple
    shapes: tuple
    stride: float | None
    calls: int


def survey(model: nn.Module, probe_size: Sequence[int] | None = None) -> list[Place]:
    """Runs ``model`` once on a probe image and lists every module that gave tensors.

    Modules of a RoI head are left out: each model has regions of its own there. The image is of
    ``probe_size`` (height, width); by default what the model says, else (256, 256).

    Raises:
        ProbeError: if the model does not run on that image.
    """
    probe_size = image_size(model) if probe_size is None else probe_size
    modules = {n: m for n, m in model.named_modules() if n and not n.startswith('roi_head')}
    points = [TapPoint(name) for name in modules if not name.startswith('data_preprocessor')]
    recorder = Recorder(model, 'model')
    recorder.listen(points)
    roots = [
        child
        for child, _ in model.named_children()
        if child not in ('roi_head', 'data_preprocessor')
    ]
    forward = PartialForward(model, roots)
    recorder.arm()
    try:
        probe = Probe(probe_size)
        with probe.explained(model, 'model', 'probe_size, or --size HEIGHT WIDTH'):
            probe.run(model, forward)
        recorder.disarm()
        return [
            place
            for point in points
            if (place := _place(recorder, point, modules[point.path], probe_size))
        ]
    finally:
        recorder.close()


def _place(
    recorder: Recorder, point: TapPoint, module: nn.Module, size: Sequence[int]
) -> Place | None:
    try:
        captures = recorder.read([point])
    except TapError:
        return None
    shapes = tuple(tuple(c.tensor.shape) for c in captures)
    shape = shapes[0]
    is_map = len(shape) == 4 and shape[2] > 0 and torch.is_floating_point(captures[0].tensor)
    stride = size[0] / shape[2] if is_map else None
    return Place(
        point.path, type(module).__name__, shape, shapes, stride, recorder.calls(point.path)
    )
