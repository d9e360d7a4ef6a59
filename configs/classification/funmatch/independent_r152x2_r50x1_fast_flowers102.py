"""Teacher and student see two random crops of the image; no mixup."""

_base_ = './funmatch_r152x2_r50x1_fast_flowers102.py'

model = dict(data_preprocessor=dict(mixup=None))
train_dataloader = dict(dataset=dict(transforms=[dict(_base_.view, mode='independent')]))
