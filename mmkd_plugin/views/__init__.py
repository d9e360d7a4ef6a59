"""What a model's tensors mean: views on its class logits, and on plain module taps.

A term names a view by its name (``student='cls_logits'``) or a tap by a module path. New kinds of
heads plug in with :func:`register_view`; nothing else changes.
"""

from .base import LogitView, View
from .boxes import DecodedBoxes
from .classifier import ClassifierLogits
from .dense import DenseLogits
from .dense_bins import DenseBins
from .dense_packed import PackedLogits
from .detections import Detections
from .dynamic_masks import DynamicMasks
from .grid_masks import GridLogits, GridMasks
from .heatmaps import HeatmapLogits
from .keypoints import KeypointLogits
from .make import make_logit_view, make_view
from .mask_query import MaskQueryLogits
from .predictions import Boxes, HeadSpec, Level, PairContext, Predictions
from .proposal_query import ProposalQueryLogits
from .query import QueryLogits
from .registry import fitting, register_view, view_names, views
from .roi import RoILogits
from .roi_masks import RoIMasks
from .semantic import PanopticSemanticLogits, SemanticLogits
from .tap_view import TapView

# Of the views of a name the first that fits a model serves it; a user's come before all of these.
TABLE: dict[str, tuple[type[LogitView], ...]] = dict(
    cls_logits=(
        SemanticLogits,
        QueryLogits,
        MaskQueryLogits,
        GridLogits,
        RoILogits,
        ProposalQueryLogits,
        DenseLogits,
        PackedLogits,
        HeatmapLogits,
        ClassifierLogits,
    ),
    boxes=(DecodedBoxes,),
    dfl_logits=(DenseBins,),
    detections=(Detections,),
    keypoints=(KeypointLogits,),
    mask_logits=(RoIMasks, DynamicMasks, GridMasks),
    seg_logits=(PanopticSemanticLogits, SemanticLogits),
)
for name, classes in TABLE.items():
    for cls in reversed(classes):  # what is registered last is tried first
        register_view(name)(cls)
del name, classes, cls

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
