"""An image classifier on MMEngine's BaseModel: backbone, head, and weights from other projects."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmkd_plugin.functional.checks import widen

from ..checks import arguments, check_keys, nearest, split_type
from ..registry import MODELS
from .heads import as_batch

# How other projects call the last linear layer of a classifier.
_CLASSIFIER = re.compile(
    r'(fc|linear|head|head\.fc|heads\.head|classifier(\.\d+)?)\.(?P<kind>weight|bias)'
)


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Backbone and head.

    A batch is ``inputs``, float (N, 3, H, W), and ``data_samples``, one dict for all of it:
    ``gt_label`` int64 (N,) and what the data preprocessor adds (``mixed_label``, ``mixed_lam``).
    A list with one sample per image, each with a ``gt_label``, is understood, too.

    Args:
        backbone: module or config; returns a tuple of maps and has ``out_channels``.
        head: module or config; ``in_channels`` and ``init`` are taken from the backbone's
            ``out_channels`` and ``head_init`` where they are missing.
        data_preprocessor: module or config; None moves the batch to the device and nothing more.
        init_cfg: as of any ``BaseModel``, for example ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: an unknown type or argument, with the nearest valid ones.

    Example:
        >>> model = ImageClassifier(dict(type='CIFARResNet', depth=20),
        ...                         dict(type='LinearHead', num_classes=100))
        >>> sum(p.numel() for p in model.parameters())
        278324
    """

    def __init__(
        self,
        backbone: nn.Module | dict,
        head: nn.Module | dict,
        data_preprocessor: nn.Module | dict | None = None,
        init_cfg: dict | None = None,
        **unknown: Any,
    ) -> None:
        check_keys(unknown, arguments(ImageClassifier), 'ImageClassifier')
        if isinstance(data_preprocessor, dict):
            data_preprocessor = _build(
                dict(data_preprocessor), 'data_preprocessor', 'ClsDataPreprocessor'
            )
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = _build(backbone, 'backbone', 'CIFARResNet')
        if isinstance(head, dict) and head.get('in_channels') is None:
            channels = getattr(self.backbone, 'out_channels', None)
            if not isinstance(channels, int):
                raise ValueError(
                    f'{type(self.backbone).__name__} does not tell its out_channels; give '
                    'head.in_channels, the channels of its last map.'
                )
            head = dict(head, in_channels=channels)
        published = getattr(self.backbone, 'head_init', None)
        self.head = _build(
            head, 'head', 'LinearHead', **(dict(init=published) if published else {})
        )

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of images (N, 3, H, W)."""
        if not inputs.is_floating_point():
            raise ValueError(
                f'ImageClassifier got {str(inputs.dtype).removeprefix("torch.")} images; it needs '
                "normalised floats: data_preprocessor=dict(type='ClsDataPreprocessor', ...)."
            )
        return self.backbone(inputs)

    def forward(
        self,
        inputs: Tensor,
        data_samples: dict | Sequence | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Logits, losses or predictions.

        Returns:
            ``mode='tensor'``: logits (N, C). ``'loss'``: ``dict(loss_cls=scalar)``. ``'predict'``:
            a list with one dict for the whole batch: ``pred_score`` (N, C), ``pred_label`` (N,)
            and, where it is known, ``gt_label`` (N,).

        Raises:
            ValueError: another mode, images that are no floats, or missing or wrong labels.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise ValueError(f"mode is 'tensor', 'loss' or 'predict', not {mode!r}.")
        logits = self.head(self.extract_feat(inputs))
        if mode == 'loss':
            head: Any = self.head
            return head.loss(logits, data_samples)
        if mode == 'predict':
            return [self._prediction(logits, data_samples)]
        return logits

    @staticmethod
    def _prediction(logits: Tensor, data_samples: dict | Sequence | None) -> dict[str, Tensor]:
        scores = widen(logits).softmax(-1)
        result = dict(pred_score=scores, pred_label=scores.argmax(-1))
        labels = None if data_samples is None else as_batch(data_samples).get('gt_label')
        if labels is not None:
            result['gt_label'] = labels
        return result

    def adapt_state_dict(self, state: dict) -> dict:
        """Renames the plain state dict of the same network to the names used here.

        Understands torchvision's and timm's weights, and checkpoints of the public CIFAR-100
        benchmark code: names without ``backbone.``, and a classifier called ``fc``, ``linear``,
        ``classifier`` or ``head``. ``load_state_dict`` and everything built on it (``load_from``,
        ``init_cfg``, a teacher's checkpoint) call it.

        Args:
            state: names and tensors, or a checkpoint that holds them as ``'model'``.

        Returns:
            ``state`` itself if it has our names already or belongs to another network; otherwise
            a new dict, in which what this model lacks is called ``backbone.*`` as well, so that
            it is reported as too much.
        """
        entries = state['model'] if isinstance(state.get('model'), dict) else state
        own = set(self.state_dict())
        if any(name.startswith('backbone.') for name in entries):
            return state
        found, renamed = 0, cast(Any, OrderedDict())  # with an attribute, as PyTorch has it
        for name, value in entries.items():
            # A wrapped network (timm's) lies one level deeper.
            ours = next((p + name for p in ('backbone.', 'backbone.net.') if p + name in own), None)
            found += ours is not None
            layer = _CLASSIFIER.fullmatch(name)
            if ours is None and layer:
                ours = f'head.fc.{layer["kind"]}'
                if isinstance(value, Tensor) and value.dim() == 4:  # a 1x1 convolution
                    value = value.flatten(1)
            renamed[ours or f'backbone.{name}'] = value
        renamed._metadata = {}
        return renamed if found else state

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # In place: the caller looks up the children's entries, and what is too much, in this dict.
        own = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        adapted = self.adapt_state_dict(own)
        if adapted is not own:
            for name in own:
                del state_dict[prefix + name]
            state_dict.update({prefix + name: value for name, value in adapted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _build(part: nn.Module | dict, where: str, example: str, **defaults: Any) -> nn.Module:
    """Builds a part of the classifier from this package's ``MODELS``, whatever the default scope.

    ``defaults`` are for arguments that the type has and the config leaves out.

    Raises:
        ValueError: no type, an unknown one, or an argument that the type does not have.
    """
    if isinstance(part, nn.Module):
        return part
    kind, kwargs = split_type(part, where, example, 'a module or a dict')
    scope = kwargs.pop('_scope_', None)
    cls = kind
    if isinstance(kind, str):
        scope, _, name = kind.rpartition('.') if '.' in kind else (scope, '.', kind)
        cls = _registered(f'{scope}.{name}' if scope else name)
        if cls is None:
            own = [n for n in MODELS.module_dict if not n.endswith('Loss')]
            raise ValueError(
                f'{where} names the type {kind!r}, which is not registered; {nearest(name, own)}.'
            )
    parameters = inspect.signature(cls).parameters
    if all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
        check_keys(kwargs, parameters, where)
    kwargs = {k: v for k, v in defaults.items() if k in parameters} | kwargs
    with DefaultScope.overwrite_default_scope(scope):  # for what the part builds in its turn
        return cls(**kwargs)


def _registered(kind: str) -> Any:
    try:
        return MODELS.get(kind)
    except RuntimeError:  # after all registries MMEngine tries to import the dotted name
        return None
