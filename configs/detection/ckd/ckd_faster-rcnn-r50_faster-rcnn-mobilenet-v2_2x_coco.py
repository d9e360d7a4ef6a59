"""CKD (contrastive, sample by sample) on the RoIs, Faster R-CNN MobileNetV2 <- Faster R-CNN R50.

Published runs (official code): CKD plus ReviewKD on the FPN with weight 2, Detectron2,
8 images an iteration, lr 0.01, 360k iterations with steps at 240k and 320k, shorter sides of 640
to 800. Here CKD alone, on the schedule of the base, which sees about as many images as 360k
iterations of 8, one scale of images, and the base's rate, 0.01 for 8 images.
"""

_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    '../../_base_/teachers/faster-rcnn_r50_ms-3x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

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

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # tau, and all sampled RoIs of a GPU as samples: official code
                loss=dict(type='CKDLoss', temperature=1.0),
                student='cls_logits',
                weight=0.1,  # official code
                name='ckd',
            ),
        ],
    )
]
