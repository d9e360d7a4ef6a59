"""CKD (contrastive, sample by sample) on the RoIs, Mask R-CNN R50 <- Mask R-CNN R101.

Published runs (official code): CKD plus ReviewKD on the FPN with weight 1, Detectron2,
8 images an iteration, lr 0.01, 360k iterations with steps at 240k and 320k, shorter sides of 640
to 800. Here CKD alone, on the schedule of the base, which sees about as many images as 360k
iterations of 8, one scale of images, and the base's rate, 0.01 for 8 images.
"""

_base_ = '../../_base_/pairs/mask-rcnn-r101_mask-rcnn-r50_2x_coco.py'

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
