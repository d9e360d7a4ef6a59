"""Student: half of RTMDet-tiny's width everywhere."""

_base_ = './rtmdet-tiny_digits.py'

model = dict(
    backbone=dict(widen_factor=0.1875),
    neck=dict(in_channels=[48, 96, 192], out_channels=48),
    bbox_head=dict(in_channels=48, feat_channels=48),
)
