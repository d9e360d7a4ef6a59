# Teacher: Faster R-CNN, ResNet-18 of half width, 64-channel neck, from scratch on BCCD at 144x108.
_base_ = [
    '../../_base_/models/faster-rcnn_r18_small-images.py',
    '../../_base_/datasets/bccd_detection.py',
    '../../_base_/schedules/bccd_18e.py',
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=16),  # 144x108 becomes 144x112
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256]),
    # cells are 10 to 38 pixels wide here
    rpn_head=dict(anchor_generator=dict(scales=[2.5])),
    roi_head=dict(bbox_head=dict(num_classes=3)),
    # up to 30 cells are in an image, 14 on average
    train_cfg=dict(rpn=dict(sampler=dict(num=128)), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=100), rcnn=dict(max_per_img=100)),
)
