"""Distillation losses, one file per method; each is a registered module ``loss(student, teacher)``.

A method adds its name to this list, its file, and nothing else.
"""

from .base import DistillLoss, FeatureLoss, GenerativeLoss, LogitLoss
from .cwd import CWDLoss
from .gdd import GDDLoss
from .kd import KDLoss
from .mgd import MGDLoss
from .pkd import PKDLoss

__all__ = [
    'CWDLoss',
    'DistillLoss',
    'FeatureLoss',
    'GDDLoss',
    'GenerativeLoss',
    'KDLoss',
    'LogitLoss',
    'MGDLoss',
    'PKDLoss',
]
