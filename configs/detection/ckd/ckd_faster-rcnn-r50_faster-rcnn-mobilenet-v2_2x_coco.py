"""CKD (contrastive, sample by sample) on the RoIs, Faster R-CNN MobileNetV2 <- Faster R-CNN R50.

Published run (official code): as in the base, but for ReviewKD's weight 2.
"""

_base_ = './ckd_faster-rcnn-r101_faster-rcnn-r50_2x_coco.py'

# mmdet ships no MobileNetV2 student with an FPN. Levels, frozen BatchNorm and no frozen stage
# (FREEZE_AT 0): official code, whose weights are others than mmdet's.
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),  # strides 4, 8, 16 and 32, the last before the 1x1 to 1280
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
# mmdet's backbone has the 1x1 convolution to 1280 all the same, and no loss reaches it.
find_unused_parameters = True

teacher = dict(
    config='mmdet::faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py',
    # box AP 40.3 (mmdet model zoo)
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_mstrain_3x_coco/faster_rcnn_r50_fpn_mstrain_3x_coco_20210524_110822-e10bd31c.pth',
)
# The term is that of the base.
custom_hooks = [dict(_base_.custom_hooks[0], teacher=teacher)]
