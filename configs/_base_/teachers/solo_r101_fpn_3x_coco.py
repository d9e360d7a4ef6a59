"""SOLO R101, 3x, multi-scale: GDD's teacher, which neither mmdet's configs nor its zoo contain.

Derived from the R50 config of the same schedule; only the backbone's depth differs.
"""

_base_ = 'mmdet::solo/solo_r50_fpn_3x_coco.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'))
)
