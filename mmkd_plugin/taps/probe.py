"""What models are run on once, before training, so that their taps show shapes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from ..errors import ProbeError, TapError, in_short
from ..images.first_batch import first_batch
from ..images.pixels import image_channels
from ..images.size import check_probe_size, image_size
from ..rng import rng_kept
from .body import samples_of, some_images
from .partial_forward import inference_mode_kept

KEY = 'probe_size=(height, width)'


class Probe:
    """A batch of the training set, or a made-up image.

    Args:
        size: height and width of the made-up image.
        batch: inputs and samples as the student's data preprocessor gave them; None for an image
            that is made up.

    Raises:
        ValueError: a size that is none.
    """

    def __init__(self, size: Sequence[int], batch: tuple[Any, Any] | None = None) -> None:
        check_probe_size(size)
        self._size, self._batch = tuple(size), batch

    @property
    def is_real(self) -> bool:
        return self._batch is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of its images; None where its inputs are no images."""
        height, width = self._size
        if self._batch is None:
            return height, width
        tensor = next(_images(self._batch[0]), None)
        return None if tensor is None else (tensor.shape[-2], tensor.shape[-1])

    def padded(self, divisor: int) -> Probe:
        """The same with heights and widths of its images rounded up to multiples."""
        size = [-(-side // divisor) * divisor for side in self._size]
        if self._batch is None or divisor == 1:
            return Probe(size, self._batch)

        def pad(item: Any) -> Any:
            if not _is_image(item):
                return item
            below, right = (-side % divisor for side in item.shape[-2:])
            return nnf.pad(item, (0, right, 0, below))

        return Probe(size, (tree_map(pad, self._batch[0]), self._batch[1]))

    def of_body(self) -> Probe:
        """Images such as a part of the model gets that works on images alone."""
        if self._batch is None:
            return self
        inputs, samples = self._batch
        images = some_images(inputs)
        return Probe(self._size, (images, samples_of(images, inputs, samples)))

    def inputs(self, model: nn.Module) -> tuple[Any, Any]:
        """Inputs and samples, on the model's device and in its dtype."""
        parameter = next(model.parameters())
        if self._batch is None:
            return _made_up(self._size, image_channels(model) or 3, parameter)
        return _moved(self._batch[0], parameter), _moved(self._batch[1], parameter)

    def run(self, model: nn.Module, forward: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
        """Calls ``forward`` once without leaving a trace in model or random states.

        Returns:
            The inputs and samples that it got.
        """
        with rng_kept(), inference_mode_kept(model), torch.no_grad():
            inputs, samples = self.inputs(model)
            forward(inputs, samples)
        return inputs, samples

    @contextlib.contextmanager
    def explained(self, model: nn.Module, role: str, key: str = KEY) -> Iterator[None]:
        """Says of a model that refuses the probe what that is for, and which ``key`` changes it.

        Raises:
            ProbeError: whatever happened inside, as a sentence that names the key.
        """
        try:
            yield
        except TapError:
            raise
        except Exception as error:
            if self.is_real:
                what = f'the first images of the training set ({_shapes(self._batch)})'
                advice = f'{key} measures on a made-up image instead.'
            else:
                what = f'the image of {self._size[0]} x {self._size[1]} (height x width)'
                advice = f'If it takes images of another size, say which: {key}.'
            raise ProbeError(
                f'The {role} ({type(model).__name__}) failed on {what} by which shapes are '
                f'measured: {in_short(error)}. {advice}'
            ) from error


def training_probe(student: nn.Module, data: Any) -> Probe:
    """The first images of a training set, as the student's data preprocessor makes them.

    Args:
        student: the model that will be trained; its data preprocessor is copied, not used.
        data: a loader, a data set or the config of one, or None.

    Returns:
        A made-up image of :func:`~mmkd_plugin.images.size.image_size` where the data cannot be
        asked.

    Raises:
        ProbeError: data that yield nothing, or fail.
    """
    batch = first_batch(data)
    size = image_size(student, data.dataset if isinstance(data, DataLoader) else data)
    preprocess = getattr(student, 'data_preprocessor', None)
    if batch is None or preprocess is None:
        return Probe(size)
    with rng_kept(), torch.no_grad():
        torch.default_generator.manual_seed(0)
        try:
            made = copy.deepcopy(preprocess)(batch, True)
        except Exception as error:
            raise ProbeError(
                f'The data preprocessor of the student ({type(preprocess).__name__}) failed on the '
                f'first images of the training set: {in_short(error)}. {KEY} measures on a made-up '
                'image instead.'
            ) from error
    return Probe(size, split_batch(made, type(student).__name__))


def split_batch(data: Any, model: str) -> tuple[Any, Any]:
    """Inputs and samples of what a data preprocessor gave, a dict or a tuple.

    Raises:
        ProbeError: a dict without ``inputs``.
    """
    if isinstance(data, (tuple, list)) and data:
        return data[0], data[1] if len(data) > 1 else None
    if isinstance(data, dict) and 'inputs' in data:
        return data['inputs'], data.get('data_samples')
    keys = ', '.join(map(repr, data)) if isinstance(data, dict) else type(data).__name__
    raise ProbeError(
        f"{model} is called with {keys}, but without 'inputs': the teacher cannot tell what the "
        "images are. Let pipeline and data preprocessor call them 'inputs', and what belongs to "
        "them 'data_samples', as MMEngine does."
    )


def _made_up(size: Sequence[int], channels: int, parameter: Tensor) -> tuple[Tensor, list]:
    """A small random image (1, C, H, W) of ``size`` and a sample that describes it."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, *size, generator=generator)
    shape = tuple(int(s) for s in size)
    sample = BaseDataElement(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
        )
    )
    return image.to(parameter.device, parameter.dtype), [sample]


def _moved(value: Any, parameter: Tensor) -> Any:
    def move(item: Any) -> Any:
        if isinstance(item, Tensor):
            dtype = parameter.dtype if item.is_floating_point() else None
            return item.to(device=parameter.device, dtype=dtype)
        return item.to(parameter.device) if isinstance(item, BaseDataElement) else item

    return tree_map(move, value)


def _images(inputs: Any) -> Iterator[Tensor]:
    """The tensors among the inputs that may be images, (..., C, H, W)."""
    values = inputs.values() if isinstance(inputs, dict) else inputs
    for value in [inputs] if isinstance(inputs, Tensor) else values:
        if _is_image(value):
            yield value


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 3


def _shapes(batch: Any) -> str:
    shapes = [tuple(image.shape) for image in _images(batch[0])]
    return ', '.join(map(str, shapes)) or type(batch[0]).__name__
