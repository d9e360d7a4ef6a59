"""CKD (contrastive, sample by sample) on the RoIs, Faster R-CNN R18 <- Faster R-CNN R101.

Published runs (official code): CKD plus ReviewKD on the FPN with weight 1.2, Detectron2,
4 images an iteration, lr 0.01, 360k iterations with steps at 240k and 320k, shorter sides of 640
to 800. Here CKD alone, on the schedule of the base, which sees about as many images as 360k
iterations of 8, one scale of images, and the base's rate, 0.01 for 8 images.
"""

_base_ = './ckd_faster-rcnn-r101_faster-rcnn-r50_2x_coco.py'

# mmdet ships no R18 student of this schedule.
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
