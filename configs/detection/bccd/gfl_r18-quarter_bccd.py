# Student: the teacher's detector with a quarter-width backbone (16 channels at the stem) and a 32-channel neck and head.
_base_ = ['./gfl_r18_bccd.py']

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
