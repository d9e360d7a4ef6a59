"""Student: half of the teacher's width everywhere, a quarter of ResNet-18 in the backbone."""

_base_ = './pspnet_r18-half_digits.py'

model = dict(
    backbone=dict(base_channels=16, stem_channels=16), decode_head=dict(in_channels=64, channels=32)
)
optim_wrapper = dict(optimizer=dict(lr=5e-3))
