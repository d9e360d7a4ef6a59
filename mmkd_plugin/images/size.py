"""The size of the images that a model is trained on, as far as its pipeline or itself says it.

Shapes are measured on an image of this size: networks of a fixed size take no other, and what fits
at 256 x 256 need not fit at the size that occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .pipelines import Step, flat, pipelines
from .pixels import unwrapped

DEFAULT = (256, 256)
# Steps after which an image has a size that is not read here, unless `_size_after` does.
_FREE_SIZE = ('Crop', 'Resize', 'Mosaic', 'MixUp', 'Affine', 'Expand', 'Pad')


def image_size(model: nn.Module, data: Any = None) -> tuple[int, int]:
    """Height and width of the images that reach a model.

    Args:
        model: its data preprocessor may set a size, or its backbone ask for one.
        data: the data set that it is trained on, or its config.

    Returns:
        The size that all of them have; (256, 256) where sizes vary or nobody says.
    """
    sizes = {fixed_size(steps) for steps in pipelines(data)}
    size = sizes.pop() if len(sizes) == 1 else None
    preprocessor = unwrapped(getattr(model, 'data_preprocessor', None))
    size = _preprocessed(preprocessor, size)
    return size or _asked_for(model) or DEFAULT


def check_probe_size(size: Any) -> None:
    """Refuses what is no size of an image.

    Raises:
        ValueError: saying what to write.
    """
    if not (
        isinstance(size, (tuple, list))
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
    ):
        raise ValueError(f'probe_size={size!r} must be (height, width) in pixels.')


def teacher_size(model: nn.Module) -> tuple[int, int] | None:
    """The size of a view that the student's data preprocessor makes for the teacher."""
    view = getattr(getattr(model, 'data_preprocessor', None), 'teacher_view', None)
    return _pair(view.get('size')) if isinstance(view, dict) else None


def fixed_size(steps: Sequence[Step]) -> tuple[int, int] | None:
    """Height and width that every image has after these steps; None where they vary."""
    size = None
    for step, always in flat(steps):
        found = _size_after(step)
        if found is not None:
            size = found if always else None
        elif step.name == 'Pad' and step.get('size_divisor'):
            size = _rounded(size, step.get('size_divisor'))
        elif any(part in step.name for part in _FREE_SIZE):
            size = None
    return size


def _size_after(step: Step) -> tuple[int, int] | None:
    name = step.name
    if name == 'Pad' or name == 'FixShapeResize':  # both are written (width, height)
        wide = step.get('size') if name == 'Pad' else (step.get('width'), step.get('height'))
        return _pair(wide, swap=True) if not step.get('keep_ratio') else None
    if name in ('TopdownAffine', 'BottomupRandomAffine'):  # MMPose's
        return _pair(step.get('input_size'), swap=True)
    if step.torchvision:
        size = step.get('size')
        if name == 'Resize' and _number(size):
            return None  # of the shorter side
        return _pair(size) if name.endswith(('Crop', 'Resize')) else None
    if name == 'Resize':
        return None if step.get('keep_ratio') else _pair(step.get('scale'), swap=True)
    if name == 'RandomResizedCrop':
        return _pair(step.get('scale'))
    if name in ('RandomCrop', 'CenterCrop', 'RandomCenterCropPad'):
        crop_type = step.get('crop_type')
        return _pair(step.get('crop_size')) if crop_type in (None, 'absolute') else None
    return None


def _pair(value: Any, swap: bool = False) -> tuple[int, int] | None:
    """(height, width) of a number or two; ``swap`` where they are written (width, height)."""
    if _number(value):
        return int(value), int(value)
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_number, value)):
        first, second = map(int, value)
        return (second, first) if swap else (first, second)
    return None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _preprocessed(preprocessor: Any, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size after a data preprocessor, from the one before it."""
    augments = getattr(preprocessor, 'batch_augments', None)
    for augment in augments if isinstance(augments, (list, tuple, nn.ModuleList)) else ():
        name, own = type(augment).__name__, getattr(augment, 'size', None)
        if 'Resize' in name and not isinstance(own, (list, tuple)):  # of the shorter side, or drawn
            size = None
        elif getattr(augment, 'sets_size', False) or name == 'BatchFixedSizePad':
            size = _pair(own)
    size = _pair(getattr(preprocessor, 'size', None)) or size  # MMSegmentation's
    return _rounded(size, getattr(preprocessor, 'pad_size_divisor', None))


def _rounded(size: tuple[int, int] | None, divisor: int | None) -> tuple[int, int] | None:
    divisor = divisor or 1
    if size is None:
        return None
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def _asked_for(model: nn.Module) -> tuple[int, int] | None:
    """The size for which a model was made: a backbone such as a vision transformer, SSD's anchors,
    or a head that turns maps into vectors of coordinates (RTMPose)."""
    anchors = getattr(getattr(model, 'bbox_head', None), 'prior_generator', None)
    found = _pair(getattr(anchors, 'input_size', None))
    if found:
        return found
    found = _pair(getattr(getattr(model, 'head', None), 'input_size', None), swap=True)
    if found:
        return found
    backbone = getattr(model, 'backbone', model)
    for body in (backbone, getattr(backbone, 'net', None)):  # ours holds timm's
        for owner in (body, getattr(body, 'patch_embed', None)):
            found = _pair(getattr(owner, 'img_size', None))
            if found:
                return found
    return None
