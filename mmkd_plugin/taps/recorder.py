"""Listens at the tapped modules, and keeps what they gave for one step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import TapError
from ..functional.compiling import is_compiling
from .foreign import AnyModule
from .paths import TapPoint

T = TypeVar('T')


@dataclass
class Capture:
    """A tensor seen at a tap, with a label for messages such as ``neck.fpn_convs.0.conv``."""

    label: str
    tensor: Tensor


@dataclass(frozen=True)
class Crop:
    """Cuts off what a map has only because its images were padded below and on the right.

    Attributes:
        images: of the batch.
        kept: height and width of the images before that padding.
        padded: height and width after it.
    """

    images: int
    kept: tuple[int, ...]
    padded: tuple[int, ...]

    def __call__(self, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.dim() == 4 and len(value) == self.images):
            return value
        # A map has one place for each `stride` pixels that have begun.
        height, width = (
            -(-side * kept // padded)
            for side, kept, padded in zip(value.shape[2:], self.kept, self.padded)
        )
        return value[:, :, :height, :width]


@dataclass
class _Listener:
    """Forward (pre-)hook of one module. An object, not a closure, so that a deep copy of the model
    gets listeners (and a recorder) of its own.

    Outputs are seen by a forward hook, inputs by a forward pre-hook: afterwards the module itself
    may have changed them in place.
    """

    path: str
    armed: bool = False
    clone: bool = False
    contiguous: bool = False
    crop: Crop | None = None
    calls: list = field(default_factory=list)
    raw: list = field(default_factory=list)
    versions: list = field(default_factory=list)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> None:
        if not self.armed:
            return
        seen = output[0] if output else (args, kwargs)
        if self.clone:
            seen = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, seen)
        if self.crop is not None:
            seen = tree_map(self.crop, seen)
        if self.contiguous:
            seen = tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, seen)
        tensors = _tensors(seen)
        self.calls.append(tensors)
        self.raw.append(seen)
        if not is_compiling():
            self.versions.append([t._version for t in tensors])

    def overwritten(self) -> bool:
        """Whether a later operation changed a captured tensor in place."""
        return any(
            t._version != version
            for call, versions in zip(self.calls, self.versions)
            for t, version in zip(call, versions)
        )

    def clear(self) -> None:
        self.calls.clear()
        self.raw.clear()
        self.versions.clear()


def _tensors(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dicts, in order."""
    # No generator: the compiler of torch 2.1 loses what it yields after the first item.
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (tuple, list)):
        return []
    found = []
    for item in value:
        found += _tensors(item)
    return found


class Recorder:
    """Listens at the taps of one model while it is armed.

    Args:
        model: the model to listen to; only forward hooks are added to it.
        role: ``'student'`` or ``'teacher'``, for messages.
    """

    def __init__(self, model: nn.Module, role: str) -> None:
        self.role = role
        self.model: AnyModule = model
        self._modules = dict(model.named_modules())
        self._prefix = ''
        self._listeners: dict[tuple[str, str], _Listener] = {}  # by path and source
        self._handles: list = []
        self._made: dict[Hashable, Any] = {}  # of this step's captures, by those who read them

    def within(self, path: str) -> Recorder:
        """The same captures, as if the module at ``path`` were the model and its taps named so."""
        if not path:
            return self
        part = copy.copy(self)
        part.model, part._prefix = self.model.get_submodule(path), f'{path}.'
        return part

    def listen(self, points: Sequence[TapPoint]) -> None:
        """Adds the modules of ``points``; a module already listened to is shared."""
        for point in points:
            key = point.path, point.source
            if key not in self._listeners:
                self._listeners[key] = _Listener(point.path)
                module = self._modules[point.path]
                register = (
                    module.register_forward_pre_hook
                    if point.source == 'input'
                    else module.register_forward_hook
                )
                self._handles.append(register(self._listeners[key], with_kwargs=True))

    def arm(self, crop: Crop | None = None, contiguous: bool = False) -> None:
        """Listens from now on; ``crop`` is applied to every map. ``contiguous`` lays captured
        tensors out as usual, whatever layout the model runs in."""
        self.clear()
        for listener in self._listeners.values():
            listener.armed, listener.crop, listener.contiguous = True, crop, contiguous

    def disarm(self) -> None:
        for listener in self._listeners.values():
            listener.armed = False

    def end_pass(self) -> None:
        """Stops listening where something was captured: what a module is given from now on belongs
        to other images."""
        for listener in self._listeners.values():
            listener.armed = listener.armed and not listener.calls

    def clear(self) -> None:
        self._made.clear()
        for listener in self._listeners.values():
            listener.clear()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once in a step for all who ask by the same ``key``."""
        key = self._prefix, key
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def close(self) -> None:
        """Removes every hook from the model."""
        self.disarm()
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self, points: Sequence[TapPoint]) -> list[Capture]:
        """The levels of a tap, in order: by module, then call, then tensor of the call.

        Raises:
            TapError: if a module was not called, or has no such call or level.
        """
        captures = []
        for point in points:
            calls = self._of(point).calls
            if not calls:
                raise TapError(
                    f'The {self.role} tap {point.path!r} captured nothing: the module '
                    'was never called in this step. Tap a module that runs in training '
                    '(tools/inspect_model.py shows the calls per step).'
                )
            if not any(calls):
                raise TapError(
                    f'The {self.role} tap {point.path!r} saw no tensor '
                    f'in the {point.source} of the module.'
                )
            call_ids = _pick(point.calls, len(calls), point, 'calls')
            for call in call_ids:
                level_ids = _pick(point.levels, len(calls[call]), point, 'levels')
                for level in level_ids:
                    label = (
                        point.path
                        + (f' call {call}' if len(calls) > 1 else '')
                        + (f' level {level}' if len(calls[call]) > 1 else '')
                    )
                    captures.append(Capture(label, calls[call][level]))
        return captures

    def raw(self, point: TapPoint) -> list:
        """What a module was given or gave, call by call and with its structure.

        Returns:
            For ``source='input'`` pairs ``(args, kwargs)``, for ``'output'`` what forward returned;
            empty if the module was not called.
        """
        return list(self._of(point).raw)

    def _of(self, point: TapPoint) -> _Listener:
        return self._listeners[f'{self._prefix}{point.path}', point.source]

    def seen(self) -> list[Tensor]:
        """All tensors since :meth:`arm`, of all taps."""
        return [t for listener in self._listeners.values() for call in listener.calls for t in call]

    def calls(self, path: str) -> int:
        """How often the module was called since :meth:`arm`."""
        path = f'{self._prefix}{path}'
        return max(
            len(listener.calls) for (own, _), listener in self._listeners.items() if own == path
        )

    def overwritten(self) -> list[str]:
        """Paths whose captured tensor a later operation (such as an in-place ReLU) changed."""
        return list(
            dict.fromkeys(
                listener.path for listener in self._listeners.values() if listener.overwritten()
            )
        )

    def protect(self, paths: Sequence[str]) -> None:
        """Clones what is captured at ``paths`` from now on; all others stay references."""
        for listener in self._listeners.values():
            listener.clone = listener.clone or listener.path in paths


def _pick(wanted: tuple[int, ...] | None, count: int, point: TapPoint, key: str) -> Sequence[int]:
    if wanted is None:
        return range(count)
    for index in wanted:
        if not -count <= index < count:
            raise TapError(
                f'The tap {point.path!r} has {key}={list(wanted)}, but this step gave '
                f'{count} of them (0 to {count - 1}).'
            )
    return [index % count for index in wanted]
