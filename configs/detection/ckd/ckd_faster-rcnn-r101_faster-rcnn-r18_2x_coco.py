"""CKD (contrastive, sample by sample) on the RoIs, Faster R-CNN R18 <- Faster R-CNN R101.

Published run (official code): as in the base, but for ReviewKD's weight 1.2 and 4 images an iteration.
"""

_base_ = './ckd_faster-rcnn-r101_faster-rcnn-r50_2x_coco.py'

# mmdet ships no R18 student of this schedule.
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
