"""The teacher sees the centre of the resized image (official sweep), the student a random crop; no mixup."""

_base_ = './funmatch_r152x2_r50x1_fast_flowers102.py'

model = dict(data_preprocessor=dict(mixup=None))
train_dataloader = dict(
    dataset=dict(transforms=[dict(type='Resize', size=160), dict(_base_.view, mode='fixed')])
)
