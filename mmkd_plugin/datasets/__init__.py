"""Data sets: the embedded handwritten digits."""

from importlib.util import find_spec

from .digits import CLASSES, ensure_digits
from .digits_scene import DigitsSpec

__all__ = ['CLASSES', 'DigitsSpec', 'ensure_digits']

if find_spec('mmdet') is not None:  # the generator serves people without MMDetection, too
    from .digits_coco import DigitsCocoDataset

    __all__ += ['DigitsCocoDataset']
