"""Run no more of a model than its taps need: backbone, neck, single heads, or all of it.

Used for the teacher's forward and for the probe that measures shapes. Nothing here knows a model
family by import; parts are found by the names every OpenMMLab model uses. What a model does to its
inputs in front of its backbone (folding clips, making voxels) is done by its own methods.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from ..errors import TapError
from ..functional.compiling import is_compiling
from .body import body_of, is_tracker
from .foreign import AnyModule

# Heads whose forward returns something else in eval mode (other scale, other number of tensors).
# For a teacher or a probe only the head's own ``training`` flag is set, never its children's, so
# norm, dropout and drop-path layers stay in eval. Subclasses are covered by their base class.
TRAIN_FORM_HEADS = (
    'RepPointsHead',
    'VFNetHead',
    'FCOSHead',
    'CondInstBboxHead',
    'CenterNetUpdateHead',
    'GuidedAnchorHead',
    'GARetinaHead',
    'SOLOHead',
    'DecoupledSOLOHead',
    'DecoupledSOLOLightHead',
)


def set_inference(model: nn.Module) -> None:
    """Puts ``model`` into eval mode, its heads into the form of output that training sees."""
    model.eval()
    for module in model.modules():
        if any(cls.__name__ in TRAIN_FORM_HEADS for cls in type(module).__mro__):
            module.training = True


@contextlib.contextmanager
def inference_form(head: nn.Module) -> Iterator[None]:
    """Lets a teacher's head give what it gives in eval mode, such as boxes in pixels."""
    flag, head.training = head.training, False
    try:
        yield
    finally:
        head.training = flag


class PartialForward:
    """Runs a model as deep as the given taps need.

    Args:
        model: a detector, segmenter, classifier or plain module.
        paths: module paths that must be called.
        where: names the taps in error messages.

    Raises:
        TapError: for a tap inside ``roi_head``, where teacher and student see other regions, and
            for one in the heads of a model that reads text, too.
    """

    def __init__(self, model: AnyModule, paths: Sequence[str], where: str = 'tap') -> None:
        self.model = model
        roots = list(dict.fromkeys(path.split('.')[0] for path in paths))
        if 'roi_head' in roots:
            inside = next(p for p in paths if p.startswith('roi_head'))
            raise TapError(
                f'{where} {inside!r} lies in the RoI head, where each model classifies regions of '
                'its own: rows of teacher and student would not belong together. Take a view, '
                "student='cls_logits' or student='mask_logits': both models then classify the "
                'regions that the student sampled. For features tap the backbone or the neck.'
            )
        parts = {'backbone', 'neck'}
        self.heads = [root for root in roots if root not in parts and takes_features(model, root)]
        self.query = 'bbox_head' in roots and decodes_queries(model)
        known = parts | set(self.heads) | ({'bbox_head'} if self.query else set())
        has_parts = hasattr(model, 'backbone') and hasattr(model, 'extract_feat')
        bare = is_tracker(model) and roots == ['backbone']  # it is given what its backbone gets
        self.full = not bare and (not has_parts or any(root not in known for root in roots))
        if self.full and is_tracker(model):
            inside = (body_of(model).path or 'backbone') + '.'
            outside = next(path for path in paths if not f'{path}.'.startswith(inside))
            raise TapError(
                f'{where} {outside!r} lies outside of the detector or backbone of '
                f'{type(model).__name__}, and a tracker runs as a whole in its own loss only. Tap '
                f'a module within {inside[:-1]!r}.'
            )
        if self.full and reads_text(model):
            inside = ', '.join(root for root in roots if root not in parts)
            raise TapError(
                f'{where}: {type(model).__name__} reads text beside the images, and without it '
                f'{inside} cannot run. Distil features of the backbone or the neck.'
            )
        self.backbone_only = not self.full and roots == ['backbone']
        # Whether the backbone gets the inputs as they are; known after a first call.
        self._direct: bool | None = True if bare else None

    @property
    def depth(self) -> str:
        """``'backbone'``, ``'neck'``, ``'head'`` or ``'full'``."""
        if self.full or self.query:
            return 'full'
        return 'backbone' if self.backbone_only else ('head' if self.heads else 'neck')

    def __call__(self, inputs: Any, data_samples: Any = None) -> None:
        if self.backbone_only and self._direct is None and not is_compiling():
            self._direct = self._is_direct(inputs, data_samples)
        elif self.backbone_only and self._direct is not False:
            self.model.backbone(inputs)
        elif self.full or _is_clip(inputs):
            self._whole(inputs, data_samples)
        else:
            features = self.model.extract_feat(inputs)
            for head in self.heads:
                getattr(self.model, head)(features)
            if self.query:
                self._decode(features, data_samples)

    def _whole(self, inputs: Any, data_samples: Any) -> None:
        if isinstance(self.model, BaseModel):
            self.model(inputs, data_samples, mode='tensor')
        else:
            self.model(inputs)

    def _is_direct(self, inputs: Any, data_samples: Any) -> bool:
        """Runs the model's own way to its backbone, and no further if that gets the very inputs."""

        def stop(_module: nn.Module, args: tuple, _output: Any) -> None:
            if args and args[0] is inputs:
                raise _ReachedError

        handle = self.model.backbone.register_forward_hook(stop)  # after those of the taps
        try:
            if _is_clip(inputs):
                self._whole(inputs, data_samples)
            else:
                self.model.extract_feat(inputs)
        except _ReachedError:
            return True
        finally:
            handle.remove()
        return False

    def _decode(self, features: tuple, data_samples: list | None) -> None:
        """Calls the head of a query detector as a module: its own ``forward`` would call none."""
        states = self.model.forward_transformer(features, data_samples)
        head = self.model.bbox_head
        accepted = inspect.signature(head.forward).parameters
        head(**{key: value for key, value in states.items() if key in accepted})


class _ReachedError(Exception):
    """Nothing went wrong: the backbone has given its output."""


def _is_clip(inputs: Any) -> bool:
    """Whether there is more than images: only ``forward`` itself knows what becomes of clips."""
    return isinstance(inputs, Tensor) and inputs.dim() > 4


def reads_text(model: nn.Module) -> bool:
    """Whether a detector's heads want the words of a prompt (GLIP, Grounding DINO)."""
    return isinstance(getattr(model, 'language_model', None), nn.Module)


def decodes_queries(model: nn.Module) -> bool:
    """Whether the model is a DETR whose transformer needs the image features only."""
    decode = getattr(model, 'forward_transformer', None)
    return decode is not None and len(inspect.signature(decode).parameters) == 2


def takes_features(model: nn.Module, root: str) -> bool:
    """Whether ``model.<root>(features)`` is a complete call of a head on image features."""
    head = getattr(model, root, None)
    if not isinstance(head, nn.Module) or hasattr(model, 'forward_transformer'):
        return False
    if not (root == 'head' or root.endswith('_head')):
        return False
    required = [
        p
        for p in inspect.signature(head.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) == 1


@contextlib.contextmanager
def inference_mode_kept(model: nn.Module) -> Iterator[None]:
    """Runs in the teacher's way (eval, training form of heads), then restores every flag."""
    flags = {module: module.training for module in model.modules()}
    set_inference(model)
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
