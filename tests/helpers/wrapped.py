"""Models around a detector, small, and made-up data in the format that each of them trains on.

The models are mmdet's own configs with smaller numbers. Nothing of mmkd_plugin is imported here.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from detectors import _shrink, model_config
from mmdet.structures import DetDataSample, ReIDDataSample, TrackDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData

SIZE = 64
CLASSES = 3


def _video(name: str, file: str, width: int) -> ConfigDict:
    """A tracker of mmdet's config whose detector, if it has one, is a small one of ours."""
    model = get_config(f'mmdet::{file}').model
    model.init_cfg = None
    model.pop('tracker', None)
    _shrink(model, width, CLASSES)
    if name != 'Mask2Former-VIS':
        model.detector = model_config(_DETECTORS[name], width, CLASSES)
        model.detector.pop('data_preprocessor')
    return model


_DETECTORS = {
    'QDTrack': 'Faster R-CNN',
    'MaskTrack R-CNN': 'Mask R-CNN',
    'ByteTrack': 'YOLOX',
    'SoftTeacher': 'Faster R-CNN',
    'semi-supervised': 'RetinaNet',
}


def qdtrack(width: int = 16) -> ConfigDict:
    model = _video('QDTrack', 'qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py', width)
    head = model.track_head
    head.roi_extractor.out_channels = width
    head.embed_head.update(in_channels=width, conv_out_channels=width, fc_out_channels=16)
    head.embed_head.update(embed_channels=16)
    return model


def masktrack(width: int = 16) -> ConfigDict:
    file = 'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py'
    model = _video('MaskTrack R-CNN', file, width)
    model.track_head.roi_extractor.out_channels = width
    model.track_head.embed_head.update(in_channels=width, fc_out_channels=16)
    return model


def bytetrack(width: int = 16) -> ConfigDict:
    detector = model_config('YOLOX', width, CLASSES)
    detector.pop('data_preprocessor')
    return ConfigDict(
        type='ByteTrack',
        data_preprocessor=dict(
            type='TrackDataPreprocessor', pad_size_divisor=32, use_det_processor=True
        ),
        detector=detector,
    )


def mask2former_vis(width: int = 16) -> ConfigDict:
    file = 'mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py'
    model = _video('Mask2Former-VIS', file, width)
    model.backbone.update(depth=18, base_channels=width // 2)
    head = model.track_head
    head.in_channels = [width // 2 * 2**stage for stage in range(4)]
    head.update(num_frames=2)
    head.positional_encoding.num_feats = width // 2
    head.loss_cls.class_weight = [1.0] * CLASSES + [0.1]
    head.train_cfg.num_points = 64
    return model


def _semi(kind: str, width: int) -> ConfigDict:
    file = 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    model = get_config(f'mmdet::{file}').model
    model.detector = model_config(_DETECTORS[kind], width, CLASSES)
    model.data_preprocessor.data_preprocessor = model.detector.data_preprocessor
    model.semi_train_cfg.update(jitter_times=2)
    return model


def soft_teacher(width: int = 16) -> ConfigDict:
    return _semi('SoftTeacher', width)


def semi(width: int = 16) -> ConfigDict:
    model = _semi('semi-supervised', width)
    model.type = 'SemiBaseDetector'
    return model


def reid(width: int = 16) -> ConfigDict:
    model = get_config('mmdet::reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py').model
    model.init_cfg = None
    model.backbone.update(depth=18, base_channels=width // 2, stem_channels=width // 2)
    model.neck.kernel_size = (2, 2)
    model.head.update(in_channels=4 * width, fc_channels=16, out_channels=8, num_classes=CLASSES)
    return model


# -- data --------------------------------------------------------------------------------------


def _frame(index: int, masks: bool = True) -> tuple[torch.Tensor, DetDataSample]:
    """An image with two bright boxes, and its annotations; always the same for an index."""
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(0, 60, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 4, 30, 28], [34, 30, 60, 62]]) + index % 3
    drawn = np.zeros((2, SIZE, SIZE), np.uint8)
    for mask, (left, top, right, bottom) in zip(drawn, boxes.int().tolist()):
        image[:, top:bottom, left:right] += 150
        mask[top:bottom, left:right] = 1
    objects = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]))
    objects.instances_ids = torch.tensor([1, 2])
    if masks:
        objects.masks = BitmapMasks(drawn, SIZE, SIZE)
    meta = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0))
    meta.update(homography_matrix=np.eye(3, dtype=np.float32), img_id=index)
    sample = DetDataSample(gt_instances=objects, ignored_instances=InstanceData(), metainfo=meta)
    sample.ignored_instances.bboxes = torch.zeros(0, 4)
    sample.ignored_instances.labels = torch.zeros(0, dtype=torch.long)
    return image, sample


@DATASETS.register_module(force=True)
class MadeUpFrames(torch.utils.data.Dataset):
    """Items of one kind: images, clips, groups of persons, images with or without labels.

    Args:
        kind: ``'image'``, ``'clip'`` (a key and a reference frame), ``'person'``, ``'labelled'`` or
            ``'unlabelled'``.
        length: number of items.
    """

    metainfo = dict(classes=('a', 'b', 'c'))

    def __init__(self, kind: str, length: int = 8) -> None:
        self.kind, self.length = kind, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return getattr(self, f'_{self.kind}')(index)

    def _image(self, index: int) -> dict:
        image, sample = _frame(index)
        return dict(inputs=image, data_samples=sample)

    def _clip(self, index: int) -> dict:
        frames = [_frame(index), _frame(index + 1)]
        sample = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
        sample.video_data_samples = [copy.deepcopy(frame) for _, frame in frames]
        return dict(inputs=torch.stack([image for image, _ in frames]), data_samples=sample)

    def _person(self, index: int) -> dict:
        images = torch.stack([_frame(index + i)[0] for i in range(4)])
        sample = ReIDDataSample(metainfo=dict(img_shape=[(SIZE, SIZE)] * 4))
        sample.set_gt_label(np.array([0, 0, 1, 1]))
        return dict(inputs=images, data_samples=sample)

    def _labelled(self, index: int) -> dict:
        return self._branches(sup=_frame(index, masks=False))

    def _unlabelled(self, index: int) -> dict:
        weak, strong = _frame(index, masks=False), _frame(index, masks=False)
        return self._branches(unsup_teacher=weak, unsup_student=strong)

    def _branches(self, **views: tuple) -> dict:
        names = ('sup', 'unsup_teacher', 'unsup_student')
        none = (None, None)
        return dict(
            inputs={name: views.get(name, none)[0] for name in names},
            data_samples={name: views.get(name, none)[1] for name in names},
        )


@DATASETS.register_module(force=True)
class BothKinds(torch.utils.data.ConcatDataset):
    """Images with labels, then images without."""

    metainfo = MadeUpFrames.metainfo

    def __init__(self) -> None:
        super().__init__([MadeUpFrames('labelled'), MadeUpFrames('unlabelled')])


def loader(kind: str) -> dict:
    """A training loader of two items a batch; ``'semi'`` mixes one with two without labels."""
    if kind == 'semi':
        return dict(
            batch_size=3,
            num_workers=0,
            sampler=dict(type='MultiSourceSampler', batch_size=3, source_ratio=[1, 2]),
            dataset=dict(type='BothKinds'),
        )
    return dict(
        batch_size=1 if kind == 'person' else 2,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=False),
        dataset=dict(type='MadeUpFrames', kind=kind),
    )


def semi_batch() -> dict:
    """One image with labels and two without, before the data preprocessor."""
    items = [MadeUpFrames('labelled')[0], *map(MadeUpFrames('unlabelled').__getitem__, (1, 2))]
    return pseudo_collate(items)
