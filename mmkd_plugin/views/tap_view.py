"""Plain module taps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..taps import Capture, Recorder, TapConfig, TapError, TapPoint, parse_tap
from .base import View
from .registry import view_names
from .tokens import split_tokens, token_map


class TapView(View):
    """The tensors at module paths, as they are; tokens as maps where ``tokens`` is said."""

    def __init__(
        self, config: TapConfig, model: nn.Module, needs: Sequence[str], where: str
    ) -> None:
        if needs:
            raise TapError(
                f'{where}={config!r} is a module path, but the loss needs {" and ".join(needs)}, '
                f'which a module does not tell. Use a view: {", ".join(view_names())}.'
            )
        config, self.tokens = split_tokens(config, where)
        self.points = parse_tap(config, model, where)

    def read(self, recorder: Recorder) -> list[Capture]:
        """The levels of this step."""
        captures = recorder.read(self.points)
        if self.tokens is None:
            return captures
        return [Capture(c.label, token_map(c.tensor, self.tokens, c.label)) for c in captures]

    def compares_classes(self, model: nn.Module) -> bool:
        return any(_is_class_layer(point, model) for point in self.points)


def _is_class_layer(point: TapPoint, model: nn.Module) -> bool:
    """Whether a point is the output of the layer of a head that has a channel for each class."""
    layer = model.get_submodule(point.path)
    channels = getattr(layer, 'out_channels', getattr(layer, 'out_features', None))
    parents = point.path.split('.')[:-1]
    for depth in range(1, len(parents) + 1):
        head = model.get_submodule('.'.join(parents[:depth]))
        classes = getattr(head, 'num_classes', None)
        if point.source == 'output' and isinstance(channels, int) and isinstance(classes, int):
            columns = getattr(head, 'cls_out_channels', classes)
            if channels in (classes, classes + 1, columns * getattr(head, 'num_base_priors', 1)):
                return True
    return False
