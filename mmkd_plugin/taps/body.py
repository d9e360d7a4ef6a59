"""The part of a model that works on images: the model itself, or a detector inside it.

Trackers (QDTrack, MaskTrack R-CNN, ByteTrack) keep it as ``detector``, semi-supervised wrappers
(SoftTeacher) as ``student``, models that generate as ``generator``. The ``teacher`` inside such a
wrapper is a moving average of its student, and never the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .foreign import AnyModule

INSIDE = ('detector', 'student', 'generator')


class Body(NamedTuple):
    """A body and where it is.

    Attributes:
        path: of the module in its model; empty if it is the model itself.
        module: the body.
    """

    path: str
    module: AnyModule

    def holds(self, paths: Sequence[str]) -> bool:
        """Whether all of these paths of the model lie in the body."""
        return all(path.startswith(f'{self.path}.') for path in paths) or not self.path

    def outer(self, path: str) -> str:
        """The path in the model of a path in the body."""
        return f'{self.path}.{path}' if self.path else path

    def inner(self, path: str) -> str:
        """The path in the body of a path in the model."""
        return path.removeprefix(f'{self.path}.') if self.path else path


def body_of(model: nn.Module) -> Body:
    """The body of a model."""
    if not _has(model, 'backbone'):
        for name in INSIDE:
            inside = getattr(model, name, None)
            if isinstance(inside, nn.Module) and _has(inside, 'backbone'):
                return Body(name, inside)
    return Body('', model)


def _has(model: nn.Module, name: str) -> bool:
    return isinstance(getattr(model, name, None), nn.Module)


def hears_images(body: Body, paths: Sequence[str] = ()) -> bool:
    """Whether a step must tell which images the body gets, since the batch of the model does not.

    Args:
        body: of the student.
        paths: all places of the student that are tapped.
    """
    if body.path:
        return body.holds(paths)
    return is_tracker(body.module) and all(path.split('.')[0] == 'backbone' for path in paths)


def is_tracker(model: nn.Module) -> bool:
    """Whether it is one of mmdet's trackers, which run as a whole in their own loss only."""
    return any(cls.__name__ == 'BaseMOTModel' for cls in type(model).__mro__)


def some_images(inputs: Any) -> Any:
    """Images (N, C, H, W) such as a body gets, out of the batch of its model: one of each video,
    the first branch of several."""
    while isinstance(inputs, (dict, list, tuple)) and len(inputs):
        inputs = next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    if not isinstance(inputs, Tensor):
        return inputs
    if inputs.dim() == 3:
        return inputs[None]
    return inputs[:, 0] if inputs.dim() == 5 else inputs


def image_shape(sample: Any) -> Any:
    """``img_shape`` of a sample, or of a dict of its meta information; None without one."""
    if isinstance(sample, dict):
        return sample.get('img_shape')
    return getattr(sample, 'img_shape', None)


def samples_of(images: Any, inputs: Any, samples: Any) -> Any:
    """The samples that belong to images of a batch, as far as the batch tells.

    Args:
        images: (N, C, H, W), what a body was given.
        inputs: the batch of its model: a tensor, clips (N, T, C, H, W) or a dict of branches.
        samples: those of the batch: a list, a dict of branches, or one for the whole batch, whose
            ``img_metas`` (MMYOLO) describe the images.

    Returns:
        A list of N samples, or None.
    """
    if isinstance(inputs, dict) and isinstance(samples, dict):
        samples = next((samples.get(key) for key, own in inputs.items() if own is images), None)
    if isinstance(samples, dict):
        samples = samples.get('img_metas')
    if not isinstance(samples, (list, tuple)):
        return None
    videos: list[Any] = [getattr(sample, 'video_data_samples', None) for sample in samples]
    if None in videos:
        return samples if len(samples) == len(images) else None
    frames = [frame for video in videos for frame in video]
    if len(frames) == len(images):
        return frames
    if len(videos) != len(images):
        return None
    keys = [getattr(sample, 'key_frames_inds', [0])[0] for sample in samples]
    return [video[key] for video, key in zip(videos, keys)]
