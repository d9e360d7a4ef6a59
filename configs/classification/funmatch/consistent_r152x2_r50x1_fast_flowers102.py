"""Teacher and student see one random crop, without mixup."""

_base_ = './funmatch_r152x2_r50x1_fast_flowers102.py'

model = dict(data_preprocessor=dict(mixup=None))
