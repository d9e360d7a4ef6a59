"""Image classifiers of the usual distillation benchmarks: a classifier, its head, and backbones."""

from .cifar_mobilenet import CIFARMobileNetV2
from .cifar_resnet import CIFARFourStageResNet, CIFARResNet
from .cifar_shufflenet import CIFARShuffleNetV1, CIFARShuffleNetV2
from .cifar_vgg import CIFARVGG
from .cifar_wide_resnet import CIFARWideResNet
from .classifier import ImageClassifier
from .data_preprocessor import ClsDataPreprocessor
from .heads import LinearHead
from .mobilenet_v1 import MobileNetV1
from .timm_backbone import TimmBackbone
from .torchvision_backbone import TorchvisionBackbone

__all__ = [
    'CIFARVGG',
    'CIFARFourStageResNet',
    'CIFARMobileNetV2',
    'CIFARResNet',
    'CIFARShuffleNetV1',
    'CIFARShuffleNetV2',
    'CIFARWideResNet',
    'ClsDataPreprocessor',
    'ImageClassifier',
    'LinearHead',
    'MobileNetV1',
    'TimmBackbone',
    'TorchvisionBackbone',
]
