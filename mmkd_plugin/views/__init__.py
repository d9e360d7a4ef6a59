"""What a model's tensors mean: views on its class logits, and on plain module taps.

A term names a view by its name (``student='cls_logits'``) or a tap by a module path. New kinds of
heads plug in with :func:`register_view`; nothing else changes.
"""

from . import (
    classifier,  # noqa: F401  (registers its view; of those that fit a model the last serves it)
    dense,  # noqa: F401
    dense_bins,  # noqa: F401
    detections,  # noqa: F401
    dynamic_masks,  # noqa: F401
    grid_masks,  # noqa: F401
    query,  # noqa: F401
    roi,  # noqa: F401
    roi_masks,  # noqa: F401
    semantic,  # noqa: F401
)
from .base import (
    LogitView,
    TapView,
    View,
    fitting,
    make_logit_view,
    make_view,
    register_view,
    view_names,
    views,
)
from .predictions import Boxes, HeadSpec, Level, PairContext, Predictions

__all__ = [
    'Boxes',
    'HeadSpec',
    'Level',
    'LogitView',
    'PairContext',
    'Predictions',
    'TapView',
    'View',
    'fitting',
    'make_logit_view',
    'make_view',
    'register_view',
    'view_names',
    'views',
]
