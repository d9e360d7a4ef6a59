"""The teacher: BiT-M R152x2, pre-trained on ImageNet-21k, fine-tuned. The schedule is recommended.

The official teachers ("rc128") were fine-tuned on plain random crops of 128, not on inception crops.
"""

_base_ = '../_base_/funmatch_sun397.py'

model = dict(
    # timm fetches these weights once and keeps them; the classification layer is new.
    backbone=dict(name='resnetv2_152x2_bit.goog_in21k', pretrained=True),
    data_preprocessor=dict(mixup=0.1),
)
crops = [
    dict(type='Resize', size=160),
    dict(type='RandomCrop', size=128),
    dict(type='RandomHorizontalFlip'),
]
train_dataloader = dict(dataset=dict(transforms=crops))
train_cfg = dict(max_iters=10000, val_interval=2000)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=3e-3, momentum=0.9), paramwise_cfg=None
)
param_scheduler = [
    dict(type='LinearLR', by_epoch=False, begin=0, end=500, start_factor=0.01),
    dict(type='MultiStepLR', by_epoch=False, milestones=[3000, 6000, 9000], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=2000))
