"""Teachers whose detections are read from their answers: boxes, labels and scores, or masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..taps import Recorder, TapError, TapPoint
from ..taps.foreign import AnyModule
from .detections_found import Candidates, taint_of
from .predictions import HeadSpec
from .regions import pyramid, pyramid_point

_SURE = 1e-4  # a score is never nearer to 0 or 1


class Reader:
    """Reads all boxes that a teacher predicts, with a vector of class logits each.

    Attributes:
        spec: the form of the class vectors.
        points: what a recorder of the teacher must keep.
        iou: of the NMS that makes detections of the boxes; None where they need none.
        masks: whether it reads masks, too.
    """

    spec: HeadSpec
    points: list[TapPoint]
    iou: float | None
    masks: bool = False

    def read(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None
    ) -> list[Candidates]:
        """The predictions of each image.

        Args:
            recorder: of the teacher.
            data_samples: of the batch.
            shared: the teacher's classes that the student has, too; None for all.
        """
        raise NotImplementedError


class FeatureReader(Reader):
    """Goes on from the features of the backbone or neck, as the teacher would in a test.

    It does so in eval mode and in the precision of the teacher's weights, also under autocast.

    Args:
        model: the teacher.
        masks: whether to read masks, too.
    """

    iou = None

    def __init__(self, model: AnyModule, masks: bool = False) -> None:
        self.masks = masks
        self.features = pyramid_point(model)
        self.points = [self.features]

    def read(
        self, recorder: Recorder, data_samples: Any, shared: Tensor | None
    ) -> list[Candidates]:
        model, maps = recorder.model, pyramid(recorder, self.features)
        dtype = next(model.parameters()).dtype
        with torch.autocast(maps[0].device.type, enabled=False), _tested(model):
            features = tuple(m.to(dtype) for m in maps)
            return self.answer(model, features, [_as_it_is(x) for x in data_samples])

    def answer(
        self, model: AnyModule, features: tuple[Tensor, ...], data_samples: list
    ) -> list[Candidates]:
        """What the teacher makes of its features; ``data_samples`` may be written to."""
        raise NotImplementedError


class AnswerReader(FeatureReader):
    """Any other detector of mmdet (SOLO, Sparse R-CNN, CenterNet): what it gives in a test.

    Its own thresholds and NMS act. An answer is a box with a label and a score p. As the class
    vector serves ``log(p / (1 - p))`` for the label; of the K - 1 other classes nothing is known
    but that they share what is left: each has the probability ``(1 - p) / K``. Boxes of a detector
    without a box head (SOLO) are those of its masks. Masks are yes or no; those of RoI heads are
    probabilities.
    """

    def __init__(self, model: AnyModule, masks: bool = False) -> None:
        super().__init__(model, masks)
        refuse_untested(model)
        path, head = _head(model)
        self.spec = HeadSpec(path, 'query', 'sigmoid', num_classes=head.num_classes)
        self.by_masks = path == 'mask_head'

    def answer(
        self, model: AnyModule, features: tuple[Tensor, ...], data_samples: list
    ) -> list[Candidates]:
        taint = taint_of(*features)
        with _features_known(model, features), _probabilities(model, self.masks):
            answers = model.predict(features[0], data_samples, rescale=False)
        found = []
        for answer in answers:
            one = answer.pred_instances
            masks = one.get('masks')
            boxes = boxes_of_masks(masks) if self.by_masks else one.bboxes
            logits = class_vectors(one.labels, one.scores, self.spec.num_classes)
            boxes = getattr(boxes, 'tensor', boxes)
            taint_here = taint + taint_of(one.scores)
            masks = masks if self.masks else None
            found.append(Candidates(boxes, logits, None, taint_here, masks))
        return found


class MaskQueryReader(FeatureReader):
    """Mask2Former and MaskFormer: the queries of their last decoder layer, boxes by their masks.

    Columns of stuff join the background: nothing of the classes with objects is lost. How good a
    mask is, the mean probability of its pixels, is the quality.
    """

    def __init__(self, model: AnyModule, masks: bool = False) -> None:
        super().__init__(model, masks)
        things = model.panoptic_head.num_things_classes
        self.spec = HeadSpec('panoptic_head', 'query', 'softmax', things, background=True)

    def answer(
        self, model: AnyModule, features: tuple[Tensor, ...], data_samples: list
    ) -> list[Candidates]:
        classes, maps = model.panoptic_head.predict(features, data_samples)
        things, rest = classes.split(
            [self.spec.num_classes, classes.shape[2] - self.spec.num_classes], 2
        )
        logits = torch.cat([things, rest.logsumexp(2, keepdim=True)], dim=2)
        inside = maps > 0
        likely = maps.sigmoid()
        sure = (likely * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        found = []
        for z, own, p, quality in zip(logits, inside, likely, sure.logit(_SURE)):
            masks = p if self.masks else None
            found.append(Candidates(boxes_of_masks(own), z, quality, taint_of(z), masks))
        return found


def has_mask_queries(model: AnyModule) -> bool:
    """Whether the model classifies masks by queries, and some classes have objects."""
    head = getattr(model, 'panoptic_head', None)
    things = getattr(head, 'num_things_classes', 0)
    return isinstance(things, int) and things > 0 and hasattr(head, 'predict')


def answers(model: AnyModule) -> bool:
    """Whether the model is a detector of mmdet whose answers have boxes or masks."""
    is_detector = any(cls.__name__ == 'BaseDetector' for cls in type(model).__mro__)
    has_features = isinstance(getattr(model, 'backbone', None), nn.Module)
    return is_detector and has_features and _head(model) is not None


def has_masks(model: AnyModule) -> bool:
    """Whether the answers of a detector have masks."""
    owners = (model, getattr(model, 'roi_head', None), getattr(model, 'bbox_head', None))
    return any(getattr(owner, 'mask_head', None) is not None for owner in owners)


def refuse_untested(model: AnyModule) -> None:
    """Refuses a teacher whose config does not say how it is tested.

    Raises:
        TapError: naming what is missing.
    """
    for name in ('rpn_head', 'roi_head', 'bbox_head', 'mask_head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.Module) and getattr(head, 'test_cfg', ()) is None:
            key = dict(rpn_head='test_cfg.rpn', roi_head='test_cfg.rcnn').get(name, 'test_cfg')
            raise TapError(
                f"the view 'detections' takes what the teacher's {name} makes "
                f'in a test, but its config has no {key}. Add it.'
            )


def class_vectors(labels: Tensor, scores: Tensor, classes: int) -> Tensor:
    """Sigmoid logits (M, K) of labels (M,) with a score each (M,), see :class:`AnswerReader`.

    >>> class_vectors(torch.tensor([1]), torch.tensor([0.8]), 2).sigmoid()
    tensor([[0.1000, 0.8000]])
    """
    scores = scores.float().clamp(_SURE, 1 - _SURE)
    others = ((1 - scores) / classes).logit()[:, None].repeat(1, classes)
    return others.scatter(1, labels.long()[:, None], scores.logit()[:, None])


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Corners (M, 4) around masks (M, h, w) bool; of an empty one, zeros.

    >>> boxes_of_masks(torch.tensor([[[False, True, True], [False, False, True]]]))
    tensor([[1., 0., 3., 2.]])
    """
    sides = []
    for axis in (1, 2):  # x, then y
        seen = masks.any(axis)
        ranks = torch.arange(seen.shape[1], device=masks.device)
        first = torch.where(seen, ranks, seen.shape[1]).amin(1)
        last = torch.where(seen, ranks + 1, 0).amax(1)
        sides += [torch.minimum(first, last), last]
    x1, x2, y1, y2 = sides
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def _head(model: AnyModule) -> tuple[str, AnyModule] | Any:
    """Path and module of the head that tells the number of classes; None if there is none."""
    for path in ('roi_head', 'bbox_head', 'mask_head'):
        head = getattr(model, path, None)
        if path == 'roi_head' and head is not None:
            head = getattr(head, 'bbox_head', None)
            head = head[-1] if isinstance(head, nn.ModuleList) else head
        if isinstance(getattr(head, 'num_classes', None), int):
            return path, head
    return None


def _as_it_is(sample: Any) -> Any:
    """A sample for an answer in pixels of the batch's image, without truth."""
    shape = sample.img_shape[:2]
    size = dict(ori_shape=shape, scale_factor=(1.0, 1.0), border=(0.0, 0.0, 0.0, 0.0))
    return type(sample)(metainfo={**sample.metainfo, **size})


@contextlib.contextmanager
def _tested(model: AnyModule) -> Iterator[None]:
    """All parts in eval mode; a teacher keeps some heads in the form of training."""
    flagged = [module for module in model.modules() if module.training]
    for module in flagged:
        module.training = False
    try:
        yield
    finally:
        for module in flagged:
            module.training = True


@contextlib.contextmanager
def _probabilities(model: AnyModule, wanted: bool) -> Iterator[None]:
    """Lets a RoI head give its masks in 255 parts: what mmdet does for a threshold below 0."""
    config, key = getattr(getattr(model, 'roi_head', None), 'test_cfg', None), 'mask_thr_binary'
    if not wanted or config is None or key not in config:
        yield
        return
    before, config[key] = config[key], -1
    try:
        yield
    finally:
        config[key] = before


@contextlib.contextmanager
def _features_known(model: AnyModule, features: tuple[Tensor, ...]) -> Iterator[None]:
    """Spares the model what it has computed in this step already."""
    model.extract_feat = lambda *_, **__: features
    try:
        yield
    finally:
        del model.extract_feat
