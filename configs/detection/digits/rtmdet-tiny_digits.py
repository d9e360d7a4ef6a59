"""Teacher: RTMDet-tiny, from scratch on the digits."""

_base_ = [
    '../../_base_/models/rtmdet_small-images.py',
    '../../_base_/datasets/digits_detection.py',
    '../../_base_/schedules/small-images_adamw.py',
    '../../_base_/default_runtime.py',
]

# 100 steps an epoch: few epochs have to do.
train_dataloader = dict(batch_size=8)
