"""Data sets: for classification, and the embedded handwritten digits for detection."""

from typing import Any

from ..registry import DATASETS
from .arrays import ArrayDataset, balanced_subset
from .batch_transforms import (
    BatchCenterCrop,
    BatchRandomCrop,
    BatchRandomFlip,
    BatchRandomResizedCrop,
    BatchResize,
    BatchTransform,
    build_batch_transforms,
)
from .cifar import CIFAR100
from .digits import CLASSES, ensure_digits
from .digits_scene import DigitsSpec
from .image_folder import CachedImageFolder
from .loading import epoch_worker_seed, stack_batch, whole_batch
from .sklearn_digits import SklearnDigits
from .torchvision_sets import TorchvisionDataset, build_transforms
from .views_transform import TeacherStudentViews

__all__ = [
    'CIFAR100',
    'CLASSES',
    'ArrayDataset',
    'BatchCenterCrop',
    'BatchRandomCrop',
    'BatchRandomFlip',
    'BatchRandomResizedCrop',
    'BatchResize',
    'BatchTransform',
    'CachedImageFolder',
    'DigitsSpec',
    'SklearnDigits',
    'TeacherStudentViews',
    'TorchvisionDataset',
    'balanced_subset',
    'build_batch_transforms',
    'build_transforms',
    'ensure_digits',
    'epoch_worker_seed',
    'stack_batch',
    'whole_batch',
]


@DATASETS.register_module(name='DigitsCocoDataset')
def _digits_coco_dataset(*args: Any, **kwargs: Any) -> Any:
    """MMDetection is imported by those who ask for its data set, not by every classifier."""
    from .digits_coco import DigitsCocoDataset

    return DigitsCocoDataset(*args, **kwargs)


@DATASETS.register_module(name='DigitsSegDataset')
def _digits_seg_dataset(*args: Any, **kwargs: Any) -> Any:
    """The same for MMSegmentation, an optional package."""
    from .digits_semantic import DigitsSegDataset

    return DigitsSegDataset(*args, **kwargs)
