"""The networks of timm as backbones; an optional extra."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmkd_plugin.checks import check_bool

from ..checks import nearest
from ..registry import MODELS


@MODELS.register_module()
class TimmBackbone(nn.Module):
    """A network of timm without its classifier; ``pip install timm``.

    Meant for Big Transfer (BiT), the pre-activation ResNets with GroupNorm and weight-standardised
    convolutions that FunMatch distils: ``resnetv2_152x2_bit`` teaches ``resnetv2_50x1_bit``. Their
    last map is after the final norm and ReLU. An ``ImageClassifier`` starts their linear layer at
    zero. Without weights, their kernels start as in FunMatch's official code: normal, truncated,
    of variance 1 / fan-in. Weight standardisation hides their scale in the forward pass, but not
    from AdamW, whose steps are as long whatever the kernel's size.

    Args:
        name: as of ``timm.create_model``.
        pretrained: download timm's weights of that name. They are without the linear layer; a
            teacher takes a whole file as its ``checkpoint``.
        **kwargs: passed on to ``timm.create_model``, for example ``drop_path_rate=0.1``.

    Shape:
        - input: (N, 3, H, W)
        - output: one map (N, D, h, w), the result of timm's ``forward_features``

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network, or one whose features are no map, or its weights could
            not be downloaded.
    """

    net: Any

    def __init__(
        self, name: str = 'resnetv2_50x1_bit', pretrained: bool = False, **kwargs: Any
    ) -> None:
        super().__init__()
        check_bool(pretrained, 'pretrained')
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f'TimmBackbone(name={name!r}) needs timm, which is not installed: pip install timm'
            ) from error
        base = str(name).partition('.')[0]  # the rest names a set of weights
        if not timm.is_model(base):
            raise ValueError(f'timm has no network {name!r}; {nearest(base, timm.list_models())}.')
        try:
            self.net = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
        except OSError as error:  # what the hub's client raises without a connection
            if not pretrained:
                raise
            raise ValueError(
                f"timm's weights of {name!r} could not be downloaded ({error}). Get the file by "
                'other means and name it: pretrained=True, pretrained_cfg_overlay=dict(file=...); '
                'or start from random weights: pretrained=False.'
            ) from error
        self.out_channels = int(self.net.num_features)
        self.arch = base
        if base.endswith('_bit'):
            self.head_init = 'zero'
            if not pretrained and not kwargs.get('checkpoint_path'):
                _init_kernels(self.net)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.net.forward_features(x)
        if out.dim() != 4 or out.shape[1] != self.out_channels:
            raise ValueError(
                f'TimmBackbone takes networks whose features are one map (N, {self.out_channels}, '
                f'h, w); those of {self.arch!r} have shape {tuple(out.shape)}.'
            )
        return (out,)


def _init_kernels(net: nn.Module) -> None:
    """Draws every convolution from a normal distribution, cut off at two deviations, of variance
    1 / fan-in."""
    # The deviation of a standard normal distribution that is cut off at -2 and 2.
    cut = 0.8796256610342398
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            std = layer.weight[0].numel() ** -0.5 / cut
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
