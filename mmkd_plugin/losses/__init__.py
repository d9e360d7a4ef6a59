"""Distillation losses, one file per method; each is a registered module ``loss(student, teacher)``.

A method adds its name to this list, its file, and nothing else.
"""

from .base import DistillLoss
from .boxes import BoxDistillLoss, BoxLoss
from .ckd import CKDLoss
from .cwd import CWDLoss
from .dkd import DKDLoss
from .feature_base import FeatureLoss, GenerativeLoss
from .gdd import GDDLoss
from .ipwd import IPWDLoss
from .kd import KDLoss
from .loca import LoCaLoss
from .logit_base import LogitLoss
from .mgd import MGDLoss
from .pkd import PKDLoss
from .row_base import RowLoss

__all__ = [
    'BoxDistillLoss',
    'BoxLoss',
    'CKDLoss',
    'CWDLoss',
    'DKDLoss',
    'DistillLoss',
    'FeatureLoss',
    'GDDLoss',
    'GenerativeLoss',
    'IPWDLoss',
    'KDLoss',
    'LoCaLoss',
    'LogitLoss',
    'MGDLoss',
    'PKDLoss',
    'RowLoss',
]
