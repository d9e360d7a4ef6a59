"""How a classification head makes its class logits, found out before any image is seen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..taps import TapError, TapPoint
from ..taps.foreign import AnyModule
from .activation import activation_of, class_loss

# Heads of MMPreTrain and MMDetection whose forward classifies no images, by the name of a class
# that they descend from.
_OTHERS = {
    'MultiTaskHead': 'holds a head for each task. Distil the tasks one by one: tap their '
    "classification layers (student='head.task_heads.<task>.fc') with KDLoss",
    'RegressionHead': 'predicts numbers, not classes. Distil features, such as the backbone',
    'ITCHead': 'compares images with texts. Distil features, such as the backbone',
    'ITMHead': 'compares images with texts. Distil features, such as the backbone',
    'VQAGenerationHead': 'generates text. Distil features, such as the backbone',
    'LinearReIDHead': 'ends its forward with the embedding, in front of its class layer. Distil '
    'features, such as the backbone',
}
# Heads that predict the sum of what they give.
_SUMMED = ('ConformerHead',)
# Heads whose logits several layers make: the input of no single layer are their features.
_SEVERAL = ('ConformerHead', 'DeiTClsHead', 'EfficientFormerClsHead', 'LeViTClsHead')
_MULTI_LABEL = ('MultiLabelClsHead',)
_TARGETS = ('target', 'label', 'gt_')


@dataclass(frozen=True)
class ClassHead:
    """Where a head's class logits are and what they mean.

    Attributes:
        label: names the head in messages: its classification layer, or ``head``.
        logits: the module whose output they are.
        features: what its one classification layer reads; None where there are several.
        scale: what the output is multiplied by, as the head does itself.
        summed: whether the output is several tensors, whose sum counts.
        activation: ``'softmax'`` or ``'sigmoid'``.
        num_classes: C.
        feature_dim: D; None without features.
        multi_label: whether an image may have any number of classes.
    """

    label: str
    logits: TapPoint
    features: TapPoint | None
    scale: float
    summed: bool
    activation: str
    num_classes: int
    feature_dim: int | None
    multi_label: bool


def read_head(model: AnyModule) -> ClassHead:
    """Reads ``model.head``.

    The logits are the output of the head, which is what its loss is given. A margin head
    (``ArcFaceClsHead``) changes the true class's logit in training; there they are the cosines of
    its normalised layer times its scale, as it predicts.

    Raises:
        TapError: a head that does not classify images, or does not tell how.
    """
    head, name = model.head, type(model.head).__name__
    _refuse_others(head, name)
    layers = _layers(head)
    classes = _num_classes(model, layers)
    fitting = [path for path, width in layers.items() if width == classes]
    logits, scale = TapPoint('head'), 1.0
    if _takes_targets(head):
        logits, scale = TapPoint('head.norm_product'), _scale(head, name)
    layer = model.get_submodule(fitting[-1]) if fitting else None
    several = len(fitting) > 1 and _is(head, _SEVERAL)
    single = isinstance(layer, nn.Linear) and not several  # a convolution reads a map
    features = TapPoint(fitting[-1], source='input') if single else None
    return ClassHead(
        label=fitting[-1] if single else f'head ({name})',
        logits=logits,
        features=features,
        scale=scale,
        summed=_is(head, _SUMMED),
        activation=_activation(head, classes),
        num_classes=classes,
        feature_dim=layer.in_features if isinstance(layer, nn.Linear) and single else None,
        multi_label=_is(head, _MULTI_LABEL),
    )


def _is(head: AnyModule, names: Sequence[str]) -> bool:
    return any(cls.__name__ in names for cls in type(head).__mro__)


def _refuse_others(head: AnyModule, name: str) -> None:
    for cls in type(head).__mro__:
        if cls.__name__ in _OTHERS:
            raise TapError(f"the model's head, {name}, {_OTHERS[cls.__name__]}.")
    required = [
        p.name
        for p in inspect.signature(head.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if type(head).forward is nn.Module.forward or len(required) > 1:
        reads = 'has no forward' if len(required) < 2 else f'reads {" and ".join(required)}'
        raise TapError(
            f"the model's head, {name}, does not turn image features into class logits "
            f'(it {reads}). Distil features, such as the backbone.'
        )


def _layers(head: AnyModule) -> dict[str, int]:
    """Linear layers and convolutions of a head by path, with their widths."""
    return {
        f'head.{name}' if name else 'head': (
            module.out_features if isinstance(module, nn.Linear) else module.out_channels
        )
        for name, module in head.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def _num_classes(model: AnyModule, layers: dict[str, int]) -> int:
    """As the head says, or as wide as its last layer; of a head without layers as the backbone."""
    name, told = type(model.head).__name__, getattr(model.head, 'num_classes', None)
    if not isinstance(told, int) and layers:
        return list(layers.values())[-1]
    if not layers:
        told = told or getattr(model.backbone, 'num_classes', None)
    if isinstance(told, int) and told > 0 and (not layers or told in layers.values()):
        return told
    raise TapError(
        f"the view 'cls_logits' looks for a linear layer with num_classes={told} "
        f'outputs in {name}, which has '
        + (', '.join(f'{path} ({width})' for path, width in layers.items()) or 'none')
        + '. Tap its module path instead (tools/inspect_model.py lists them).'
    )


def _takes_targets(head: AnyModule) -> bool:
    """Whether the forward may be told the true classes: then it treats them in another way."""
    names = list(inspect.signature(head.forward).parameters)[1:]
    return any(part in name for name in names for part in _TARGETS)


def _scale(head: AnyModule, name: str) -> float:
    scale = getattr(head, 'scale', None)
    if isinstance(getattr(head, 'norm_product', None), nn.Module) and isinstance(
        scale, (int, float)
    ):
        return float(scale)
    raise TapError(
        f'{name} treats the true class in another way in training (its forward takes the '
        'labels), and has not the parts norm_product and scale of an ArcFaceClsHead from which its '
        'logits could be had without that. Distil features, such as the backbone.'
    )


def _activation(head: AnyModule, classes: int) -> str:
    """A head whose loss is no module is a softmax, unless it says ``use_sigmoid``."""
    loss, name = class_loss(head), type(head).__name__
    if loss is None:
        return 'sigmoid' if getattr(head, 'use_sigmoid', False) is True else 'softmax'
    kind = type(loss).__name__
    for key in ('s', 'scale'):
        factor = getattr(loss, key, 1)
        if isinstance(factor, (int, float)) and factor != 1:
            raise TapError(
                f'{kind} of {name} multiplies the logits by {key}={factor} before its '
                "softmax, so that the head's own output is not what it predicts from. Let the "
                "head's forward do that, or distil features, such as the backbone."
            )
    tensor = next(head.parameters(), None)
    found = activation_of(loss, classes, None if tensor is None else tensor.device)
    if found is None:
        raise TapError(
            f'{kind} of {name} does not tell whether the logits go through a softmax or '
            'through a sigmoid for each class. Give the loss an attribute use_sigmoid, True or '
            'False, or distil features, such as the backbone.'
        )
    return found
