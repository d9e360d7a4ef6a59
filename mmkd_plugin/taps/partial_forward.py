"""Run no more of a model than its taps need: backbone, neck, single heads, or all of it.

Used for the teacher's forward and for the probe that measures shapes. Nothing here knows a model
family by import; parts are found by the names every OpenMMLab model uses.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import ProbeError, TapError
from ..images.pixels import image_channels
from ..rng import rng_kept
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
        self.full = not has_parts or any(root not in known for root in roots)
        if self.full and reads_text(model):
            inside = ', '.join(root for root in roots if root not in parts)
            raise TapError(
                f'{where}: {type(model).__name__} reads text beside the images, and without it '
                f'{inside} cannot run. Distil features of the backbone or the neck.'
            )
        self.backbone_only = not self.full and roots == ['backbone']

    @property
    def depth(self) -> str:
        """``'backbone'``, ``'neck'``, ``'head'`` or ``'full'``."""
        if self.full or self.query:
            return 'full'
        return 'backbone' if self.backbone_only else ('head' if self.heads else 'neck')

    def __call__(self, inputs: Tensor, data_samples: list | None = None) -> None:
        if self.full:
            if isinstance(self.model, BaseModel):
                self.model(inputs, data_samples, mode='tensor')
            else:
                self.model(inputs)
        elif self.backbone_only:
            self.model.backbone(inputs)
        else:
            features = self.model.extract_feat(inputs)
            for head in self.heads:
                getattr(self.model, head)(features)
            if self.query:
                self._decode(features, data_samples)

    def _decode(self, features: tuple, data_samples: list | None) -> None:
        """Calls the head of a query detector as a module: its own ``forward`` would call none."""
        states = self.model.forward_transformer(features, data_samples)
        head = self.model.bbox_head
        accepted = inspect.signature(head.forward).parameters
        head(**{key: value for key, value in states.items() if key in accepted})


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


def probe_inputs(model: nn.Module, size: Sequence[int]) -> tuple[Tensor, list]:
    """One small random image of ``size`` (height, width) and a sample that describes it.

    Returns:
        The image, (1, C, H, W), on the model's device and in its dtype, and its data samples.
    """
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, image_channels(model) or 3, *size, generator=generator)
    shape = tuple(int(s) for s in size)
    sample = BaseDataElement(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
        )
    )
    return image.to(parameter.device, parameter.dtype), [sample]


def probe(model: nn.Module, forward: Any, size: Sequence[int]) -> tuple[Tensor, list]:
    """Calls ``forward`` once on a probe image without leaving a trace in model or random states.

    Returns:
        The probe image and its data samples.
    """
    with rng_kept(), inference_mode_kept(model), torch.no_grad():
        image, samples = probe_inputs(model, size)
        forward(image, samples)
    return image, samples


@contextlib.contextmanager
def probe_explained(
    model: nn.Module, size: Sequence[int], role: str, key: str = 'probe_size=(height, width)'
) -> Iterator[None]:
    """Says of a model that refuses the probe image what that image is for, and which ``key`` sets
    its size.

    Raises:
        ProbeError: whatever happened inside, as a sentence that names the key.
    """
    try:
        yield
    except TapError:
        raise
    except Exception as error:
        what = ' '.join(str(error).split())[:300] or 'no message'
        raise ProbeError(
            f'The {role} ({type(model).__name__}) failed on the image of {size[0]} x {size[1]} '
            f'(height x width) by which shapes are measured: {type(error).__name__}: {what}. If it '
            f'takes images of another size, say which: {key}.'
        ) from error
