"""What kind of model it is, told by the heads it has."""

from __future__ import annotations

from torch import nn

from ..taps.body import INSIDE, body_of
from ..views.keypoints import predicts_keypoints

FAMILIES = {
    'two-stage': 'two-stage detector (has roi_head)',
    'one-stage': 'one-stage or query detector (has bbox_head)',
    'mask': 'instance segmentation without boxes (has mask_head)',
    'query-mask': 'mask classification with queries (has panoptic_head or track_head)',
    'semantic': 'semantic segmentation (has decode_head)',
    'pose': 'pose estimator (has a head that finds keypoints)',
    'classification': 'classifier (has a head only)',
}


def family(model: nn.Module) -> str:
    """The family of a model, or of the detector inside it: a key of ``FAMILIES``.

    Raises:
        ValueError: if the model has none of the heads the recipes know.
    """
    body = body_of(model).module

    def has(*attributes: str) -> bool:
        return any(isinstance(getattr(body, a, None), nn.Module) for a in attributes)

    if has('roi_head'):
        return 'two-stage'
    if has('bbox_head'):
        return 'one-stage'
    if has('mask_head'):
        return 'mask'
    if has('panoptic_head', 'track_head'):
        return 'query-mask'
    if has('decode_head'):
        return 'semantic'
    if has('head') and has('backbone'):
        return 'pose' if predicts_keypoints(body) else 'classification'
    children = ', '.join(name for name, _ in model.named_children()) or 'none'
    raise ValueError(
        f'No recipe fits {type(model).__name__}: it has no roi_head, bbox_head, mask_head, '
        f'panoptic_head, decode_head or head (its sub-modules: {children}), and no detector with a '
        f'backbone inside ({", ".join(INSIDE)}). '
        "Write the terms yourself: terms=[dict(loss=dict(type='GDDLoss'), "
        "student='<module path>', weight=...)]; "
        'tools/inspect_model.py (mmkd inspect) lists the paths.'
    )
