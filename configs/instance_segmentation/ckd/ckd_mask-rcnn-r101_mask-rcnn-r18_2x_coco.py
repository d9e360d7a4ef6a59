"""CKD (contrastive, sample by sample) on the RoIs, Mask R-CNN R18 <- Mask R-CNN R101.

Published run (official code): as in the base, but for ReviewKD's weight 0.8.
"""

_base_ = './ckd_mask-rcnn-r101_mask-rcnn-r50_2x_coco.py'

# mmdet ships no R18 student of this schedule.
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
