"""FCOS with a full-width ResNet-18 and a 64-channel neck, for small images, trained from scratch."""

_base_ = './r18-fpn_small-images.py'

model = dict(
    type='FCOS',
    bbox_head=dict(
        type='FCOSHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        strides=[8, 16, 32],
        # FCOS's own ranges (64, 128, ...) are meant for 1333x800; objects here are 20 to 40 pixels.
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        # The published improvements, with which few epochs suffice.
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        center_sample_radius=1.5,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=None,
    test_cfg=dict(
        nms_pre=300,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=50,
    ),
)
