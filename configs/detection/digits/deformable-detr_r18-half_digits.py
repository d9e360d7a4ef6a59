"""Teacher: a small Deformable DETR with a half-width ResNet-18, from scratch on the digits."""

_base_ = [
    '../../_base_/models/deformable-detr_r18_small-images.py',
    '../../_base_/datasets/digits_detection.py',
    '../../_base_/schedules/small-images_adamw.py',
    '../../_base_/default_runtime.py',
]

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[64, 128, 256]))

# Learns nothing in 400 steps of 8 images; numbers chosen on the student alone.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
