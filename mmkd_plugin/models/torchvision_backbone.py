"""The networks of torchvision as backbones."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu

from ..checks import nearest
from ..registry import MODELS

SUPPORTED = (
    'resnet*',
    'resnext*',
    'wide_resnet*',
    'regnet_*',
    'shufflenet_v2_*',
    'mobilenet_v*',
    'efficientnet_*',
    'convnext_*',
    'densenet*',
    'mnasnet*',
    'vgg*',
    'alexnet',
)

# Class of torchvision: the modules in the order of its forward, and those whose maps are returned.
_TRUNKS = dict(
    ResNet=(
        ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4'),
        ('layer1', 'layer2', 'layer3', 'layer4'),
    ),
    RegNet=(
        ('stem', *(f'trunk_output.block{i}' for i in (1, 2, 3, 4))),
        tuple(f'trunk_output.block{i}' for i in (1, 2, 3, 4)),
    ),
    ShuffleNetV2=(
        ('conv1', 'maxpool', 'stage2', 'stage3', 'stage4', 'conv5'),
        ('stage2', 'stage3', 'stage4', 'conv5'),
    ),
)


@MODELS.register_module()
class TorchvisionBackbone(nn.Module):
    """A classification network of torchvision without its last linear layer.

    Its modules keep their names (``backbone.layer4``, ``backbone.features``), and with a
    ``LinearHead`` the logits are those of torchvision to the bit. Everything in front of the last
    linear layer belongs to the backbone: the dropout of MobileNetV2, the hidden layers of
    MobileNetV3 and VGG, the norm of ConvNeXt. Where there is such a thing, the last output is what
    it returns, a vector (N, D); otherwise it is the last map.

    Args:
        name: as of ``torchvision.models.get_model``: resnet18, mobilenet_v2, ...
        weights: None for random ones, or torchvision's name or enum (``'DEFAULT'``,
            ``'IMAGENET1K_V1'``), which are downloaded. They are without the linear layer; a
            teacher takes torchvision's whole file as its ``checkpoint``.

    Shape:
        - input: (N, 3, H, W)
        - output: the last map of each size; four, of strides 4, 8, 16, 32, for ResNets

    Raises:
        ValueError: an unknown or unsupported network or set of weights.
    """

    avgpool: Any  # of the network, which may have neither
    classifier: Any

    def __init__(self, name: str = 'resnet18', weights: Any = None) -> None:
        super().__init__()
        net = _torchvision_net(name, weights)
        self.arch = name
        self.out_channels = _cut_last_linear(net)
        for child, module in net.named_children():
            self.add_module(child, module)
        # Paths, not modules: conversions (SyncBN) put other modules in their places.
        self._path, self._ends = _TRUNKS.get(type(net).__name__) or _features_trunk(net)
        self._last_relu = name.startswith('densenet')  # its last ReLU is a function, no module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for path in self._path:
            module = self  # get_submodule would break the graph of torch 2.1's compiler
            for name in path.split('.'):
                module = getattr(module, name)
            x = module(x)
            if path in self._ends:
                outputs.append(x)
        if self._last_relu:
            outputs[-1] = relu(outputs[-1])
        if hasattr(self, 'classifier'):
            outputs.append(self._hidden_layers(outputs[-1]))
        return tuple(outputs)

    def _hidden_layers(self, x: Tensor) -> Tensor:
        """What comes between the last map and the last linear layer: a vector (N, D)."""
        x = self.avgpool(x) if hasattr(self, 'avgpool') else adaptive_avg_pool2d(x, 1)
        # ConvNeXt flattens by itself, after a norm that needs a map.
        flattens = any(isinstance(module, nn.Flatten) for module in self.classifier)
        return self.classifier(x if flattens else x.flatten(1))


def _torchvision_net(name: str, weights: Any) -> nn.Module:
    """Builds a network of torchvision's classification models.

    Raises:
        ValueError: no such network or weights; with the nearest names.
    """
    from torchvision import models  # takes a second: only where it is needed

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f'torchvision has no network {name!r}; {nearest(str(name), names)}.')
    if not any(fnmatch(name, pattern) for pattern in SUPPORTED):
        raise ValueError(
            f'TorchvisionBackbone cannot take {name!r} apart; it supports {", ".join(SUPPORTED)}.'
        )
    if isinstance(weights, str):
        choices = ['DEFAULT', *(entry.name for entry in models.get_model_weights(name))]
        if weights.rpartition('.')[2] not in choices:
            raise ValueError(
                f'torchvision has no weights {weights!r} of {name}; valid: {", ".join(choices)}.'
            )
    return models.get_model(name, weights=weights)


def _cut_last_linear(net: Any) -> int:
    """Removes the last linear layer of ``net``, and what is then of no use; returns its inputs."""
    if isinstance(getattr(net, 'classifier', None), nn.Sequential):
        channels = net.classifier[-1].in_features
        net.classifier = net.classifier[:-1]
        return channels
    head = 'fc' if hasattr(net, 'fc') else 'classifier'
    channels = getattr(net, head).in_features
    delattr(net, head)
    if hasattr(net, 'avgpool'):
        del net.avgpool  # the head's
    return channels


def _features_trunk(net: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Modules of a sequential body, and those behind which the size shrinks or the body ends."""
    body = 'features' if hasattr(net, 'features') else 'layers'
    modules = dict(getattr(net, body).named_children())
    path = tuple(f'{body}.{name}' for name in modules)
    shrinks = [_shrinks(module) for module in modules.values()]
    return path, tuple(p for p, after in zip(path, [*shrinks[1:], True]) if after)


def _shrinks(module: nn.Module) -> bool:
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    return any(isinstance(m, kinds) and m.stride not in (1, (1, 1)) for m in module.modules())
