"""Pure tensor maths of the distillation losses: student first, teacher second, torch only.

Every function accepts any float dtype, computes in float32 or wider (float64 stays float64), sends
no gradient to the teacher, and works in log space, so that large logits stay finite.
"""

from .features import (
    add_noise,
    channel_kl,
    feature_mse,
    mask_positions,
    pearson_distance,
    standardize_channels,
)
from .logits import binary_kl, kl_divergence

__all__ = [
    'add_noise',
    'binary_kl',
    'channel_kl',
    'feature_mse',
    'kl_divergence',
    'mask_positions',
    'pearson_distance',
    'standardize_channels',
]
