"""Student: half of the teacher's width everywhere, a quarter of ResNet-18 in the backbone."""

_base_ = './retinanet_r18-half_digits.py'

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
