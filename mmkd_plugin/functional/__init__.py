"""Pure tensor maths of the distillation losses: student first, teacher second, torch only.

Every function accepts any float dtype, computes in float32 or wider (float64 stays float64), sends
no gradient to the teacher, and works in log space, so that large logits stay finite.
"""

from .boxes import box_iou, box_l1, closer_to, diou_loss, giou_loss
from .contrastive import contrastive
from .dkd import dkd, dkd_parts
from .features import (
    add_noise,
    channel_kl,
    feature_mse,
    mask_channels,
    mask_positions,
)
from .ipw import ipw_weights
from .loca import loca_calibrate, loca_margin
from .logits import binary_kl, kl_divergence
from .mixup import mixup
from .pearson import pearson_distance, standardize_channels

__all__ = [
    'add_noise',
    'binary_kl',
    'box_iou',
    'box_l1',
    'channel_kl',
    'closer_to',
    'contrastive',
    'diou_loss',
    'dkd',
    'dkd_parts',
    'feature_mse',
    'giou_loss',
    'ipw_weights',
    'kl_divergence',
    'loca_calibrate',
    'loca_margin',
    'mask_channels',
    'mask_positions',
    'mixup',
    'pearson_distance',
    'standardize_channels',
]
