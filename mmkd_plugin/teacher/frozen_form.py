"""How a frozen model runs: batch norms as part of convolutions, weights in the faster layout."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..taps.foreign import AnyModule

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Whose forward is the plain convolution, or the plain norm. Others do something to their weights.
_PLAIN = ('torch.nn.modules.', 'mmcv.cnn.bricks.wrappers')
# How far a tap may be from what it sees of the model as it is, as a part of its norm.
_TOLERANCE = {torch.float16: 3e-2, torch.bfloat16: 1e-1}
_TOLERANCE_FLOAT = 1e-3


class _Part(NamedTuple):
    """A convolution, and the norm that alone reads its output, if there is one to fold."""

    conv: AnyModule
    norm: AnyModule | None

    def is_quiet(self) -> bool:
        """Whether nobody listens in between, and the norm takes its stored statistics."""
        conv, norm = self.conv, self.norm
        heard = norm is not None and (conv._forward_hooks or norm._forward_pre_hooks)
        return norm is None or not (heard or norm.training)

    def sources(self) -> list[Tensor]:
        conv, norm = self.conv, self.norm
        tensors = [conv.weight, conv.bias]
        if norm is not None:
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


class FrozenForm:
    """The form in which a frozen model runs. It has this form in its forwards and at no other time.

    * ``fold``: in eval mode a batch norm is a factor and a shift of each channel. With g the
      factor, a norm after a convolution of weight W and bias b is a convolution of weight g W and
      bias g (b - mean) + shift.
    * :attr:`channels_last`: images and the weights of 2-D convolutions have their channels
      innermost.

    The results differ by rounding. Between its forwards the model is what it was: parameters,
    buffers, state dict and forward of every module. The weights of this form are held beside it,
    which takes the memory of the model's convolutions once more.

    Which norm follows which convolution is seen in one plain forward. They belong together if the
    norm reads the very tensor that the convolution gave, in each of their calls. Left alone is a
    pair with a hook in between (a tap's, or of somebody else), a norm that is no plain BatchNorm or
    takes the statistics of its batch, and a convolution that does more than convolve. Hooks and
    modes are looked at before each forward, as they may change.

    Args:
        model: a model in eval mode.
        fold: see above.

    Attributes:
        known: whether the pairs have been looked for.
        folded: how many norms are part of a convolution.
        channels_last: the layout; may be changed between two forwards.
    """

    def __init__(self, model: nn.Module, fold: bool) -> None:
        self.known = self._channels_last = False
        plain = [module for module in model.modules() if _is_plain(module)]
        self._convs = [m for m in plain if isinstance(m, _CONVOLUTIONS) and _owns_weight(m)]
        self._norms = [m for m in plain if isinstance(m, _BatchNorm) and fold]
        self._found: list[_Part] = []
        self._parts: list[_Part] = []  # of these, what differs from the model
        self._weights: list[tuple[nn.Parameter | None, ...]] = []
        self._stamp: list[tuple[int, int]] = []

    @property
    def folded(self) -> int:
        return sum(part.norm is not None for part in self._parts)

    @property
    def channels_last(self) -> bool:
        return self._channels_last

    @channels_last.setter
    def channels_last(self, wanted: bool) -> None:
        self._channels_last, self._stamp = wanted, []
        self._parts = [p for p in self._found if p.norm is not None or self._relaid(p.conv)]

    def __len__(self) -> int:
        return len(self._parts)

    def held(self) -> list[Tensor]:
        """The tensors of this form, beside those of the model."""
        return [tensor for weights in self._weights for tensor in weights if tensor is not None]

    def find(self, run: Callable[[], None]) -> None:
        """Sees in one call of ``run``, a forward without gradient, what to exchange."""
        given: dict[int, tuple[weakref.ref, nn.Module]] = {}
        called: dict[nn.Module, None] = {}
        partners: dict[nn.Module, set[nn.Module | None]] = {}  # of norms and of convolutions

        def after_conv(module: nn.Module, _args: tuple, output: Tensor) -> None:
            called[module] = None
            given[id(output)] = weakref.ref(output), module

        def before_norm(module: nn.Module, args: tuple) -> None:
            x = args[0] if args else None
            alive, conv = given.get(id(x), (lambda: None, None))
            if x is None or alive() is not x:
                conv = None
            partners.setdefault(module, set()).add(conv)
            if conv is not None:
                partners.setdefault(conv, set()).add(module)

        handles = [conv.register_forward_hook(after_conv) for conv in self._convs]
        handles += [norm.register_forward_pre_hook(before_norm) for norm in self._norms]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        for conv in called:
            norm = _only(partners.get(conv, set()))
            if norm is None or norm.running_var is None or partners[norm] != {conv}:
                self._found.append(_Part(conv, None))
            else:
                self._found.append(_Part(conv, norm))
        self._found = [p if p.is_quiet() else _Part(p.conv, None) for p in self._found]
        self.channels_last = False
        self.known = True

    def renew(self) -> None:
        """Makes its weights anew before the next forward."""
        self._stamp = []

    def give_up(self) -> None:
        """Runs the model as it is from now on."""
        self._found, self._weights = [], []
        self.channels_last = False

    def images(self, images: Any) -> Any:
        """The batch in the layout of this form, if it is one of images."""
        if self.channels_last and isinstance(images, Tensor) and images.dim() == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model in this form, made anew if a weight has changed since."""
        self._renew()
        kept: list[tuple[dict[str, Any], Any, Any]] = []
        passing: list[dict[str, Any]] = []
        try:
            for part, (weight, bias) in zip(self._parts, self._weights):
                if not part.is_quiet():
                    continue
                conv, norm = part
                own = conv._parameters
                kept.append((own, own['weight'], own['bias']))
                own['weight'], own['bias'] = weight, bias
                if norm is not None:
                    norm.__dict__['forward'] = _pass
                    passing.append(norm.__dict__)
            yield
        finally:
            for own, weight, bias in kept:
                own['weight'], own['bias'] = weight, bias
            for attributes in passing:
                del attributes['forward']

    def _renew(self) -> None:
        # Versions and addresses: whoever loads, trains or moves the weights changes one of them.
        # Writing through .data changes neither.
        stamp = [(t._version, t.data_ptr()) for part in self._parts for t in part.sources()]
        if stamp != self._stamp:
            self._weights = [self._made(part) for part in self._parts]
            self._stamp = stamp

    def _relaid(self, conv: AnyModule) -> bool:
        return self.channels_last and conv.weight.dim() == 4

    def _made(self, part: _Part) -> tuple[nn.Parameter | None, ...]:
        """Weight and bias of the convolution in this form, computed in float32 or wider."""
        conv, norm = part
        weight, bias, kind = conv.weight.detach(), conv.bias, conv.weight.dtype
        if norm is not None:
            wide = torch.promote_types(kind, torch.float32)
            tensors = weight, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
            numbers: list[Any] = [None if t is None else t.detach().to(wide) for t in tensors]
            weight, bias, mean, variance, scale, shift = numbers
            weight, bias = fuse_conv_bn_weights(
                weight, bias, mean, variance, norm.eps, scale, shift
            )
            weight, bias = weight.detach().to(kind), bias.detach().to(kind)
        if self._relaid(conv):
            weight = weight.contiguous(memory_format=torch.channels_last)
        return nn.Parameter(weight, False), None if bias is None else nn.Parameter(bias, False)


def _is_plain(module: nn.Module) -> bool:
    home = getattr(type(module).forward, '__module__', None) or ''  # None where it is missing
    return home.startswith(_PLAIN) and 'forward' not in vars(module)


def _owns_weight(conv: nn.Module) -> bool:
    """Not one that a parametrization, or a hook before its forward, makes."""
    return conv._parameters.get('weight') is not None and not conv._forward_pre_hooks


def _only(found: set[Any]) -> Any:
    return next(iter(found)) if len(found) == 1 else None


def _pass(x: Tensor) -> Tensor:
    return x


def holds_foreign_kernels(model: nn.Module) -> bool:
    """Whether a module calls mmcv's own kernels. On CPUs some of them (RoIAlign, deformable
    convolution) read a channels-last map as if it were laid out as usual, without a word."""
    return any(type(module).__module__.startswith('mmcv.ops') for module in model.modules())


def agree(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two forms of a model gave the same at its taps, up to rounding.

    Waits for the device.
    """
    if [x.shape for x in first] != [x.shape for x in second]:
        return False
    for one, other in zip(first, second):
        if not other.is_floating_point():
            continue
        tolerance = _TOLERANCE.get(other.dtype, _TOLERANCE_FLOAT)
        if not bool((one.float() - other.float()).norm() <= tolerance * other.float().norm()):
            return False
    return True
