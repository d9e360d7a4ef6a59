"""Teacher: Faster R-CNN with a half-width ResNet-18 and a 64-channel neck, from scratch on the digits."""

_base_ = [
    '../../_base_/models/faster-rcnn_r18_small-images.py',
    '../../_base_/datasets/digits_detection.py',
    '../../_base_/schedules/small-images_adamw.py',
    '../../_base_/default_runtime.py',
]

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))

optim_wrapper = dict(optimizer=dict(lr=2e-3))
# 100 steps an epoch: few epochs have to do.
train_dataloader = dict(batch_size=8)
