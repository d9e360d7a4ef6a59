"""Tiny semantic segmenters of MMSegmentation, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmkd_plugin.teacher import build_model

CLASSES, SIZE, IGNORED = 5, 64, 255
NORM = dict(type='BN', requires_grad=True)


def segmenter_config(
    width: int = 8, classes: int = CLASSES, stride: int = 8, auxiliary: bool = True, **head
) -> dict:
    """PSPNet on a thin ResNet-18.

    Args:
        width: Channels of the stem and of the decode head.
        classes: Number of classes.
        stride: Of the logits: 8, or 16 without the last dilation.
        auxiliary: Whether to add the auxiliary head that MMSegmentation's configs have.
        **head: Further keys of the decode head.
    """
    heads = dict(num_classes=classes, norm_cfg=NORM, align_corners=False, dropout_ratio=0.0)
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[120.0, 110.0, 100.0],
            std=[60.0, 60.0, 60.0],
            bgr_to_rgb=True,
            size=(SIZE, SIZE),
            seg_pad_val=IGNORED,
        ),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            base_channels=width,
            stem_channels=width,
            dilations=(1, 1, 2, 4) if stride == 8 else (1, 1, 1, 2),
            strides=(1, 2, 1, 1) if stride == 8 else (1, 2, 2, 1),
            contract_dilation=True,
            norm_cfg=NORM,
        ),
        decode_head=dict(
            type='PSPHead',
            in_channels=8 * width,
            in_index=3,
            channels=width,
            pool_scales=(1, 2),
            loss_decode=dict(**loss, loss_weight=1.0),
            **heads,
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    model['decode_head'].update(head)
    if auxiliary:
        model['auxiliary_head'] = dict(
            type='FCNHead',
            in_channels=4 * width,
            in_index=2,
            channels=width,
            num_convs=1,
            concat_input=False,
            loss_decode=dict(**loss, loss_weight=0.4),
            **heads,
        )
    return model


def cascade_config(width: int = 8) -> dict:
    """OCRNet: two decode heads, the second of which reads the first."""
    model = segmenter_config(width, auxiliary=False)
    shared = {k: v for k, v in model['decode_head'].items() if k not in ('type', 'pool_scales')}
    first = dict(shared, type='FCNHead', num_convs=1, concat_input=False)
    model.update(
        type='CascadeEncoderDecoder',
        num_stages=2,
        decode_head=[first, dict(shared, type='OCRHead', ocr_channels=8)],
    )
    return model


def segmenter(config: dict, seed: int = 0) -> nn.Module:
    """Builds a segmenter whose random weights depend on `seed` only."""
    model = build_model(Config(dict(model=config, default_scope='mmseg')))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
    return model.train()


def seg_batch(
    n: int = 2, classes: int = CLASSES, size: int = SIZE, valid: Sequence[int] | None = None
) -> tuple[Tensor, list]:
    """Noise, and labels in blocks of 8 x 8 pixels whose topmost row is ignored.

    Args:
        n: Number of images.
        classes: Number of classes in the labels.
        size: Height and width.
        valid: Columns of pixels before the padding, for each image. Default: all of them.
    """
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, size, size, generator=generator)
    for i in range(n):
        blocks = torch.randint(0, classes, (1, size // 8, size // 8), generator=generator)
        labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
        labels[:, :8] = IGNORED
        width = valid[i] if valid else size
        labels[..., width:] = IGNORED
        images[i, ..., width:] = 0
        shapes = dict(img_shape=(size, width), ori_shape=(size, width), pad_shape=(size, size))
        found = SegDataSample(metainfo=dict(shapes, batch_input_shape=(size, size)))
        found.gt_sem_seg = PixelData(data=labels)
        samples.append(found)
    return images, samples
