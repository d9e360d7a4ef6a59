"""DKD on the RoIs, Faster R-CNN R50 <- Faster R-CNN R101.

Published runs (mdistiller): Detectron2, 8 images an iteration, lr 0.01, 180k iterations with steps
at 120k and 160k, about 1x; here the 2x of the other methods on this pair.
"""

_base_ = '../../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # temperature, alpha, beta: mdistiller, on all sampled RoIs, background among them
                loss=dict(type='DKDLoss', temperature=1.0, alpha=1.0, beta=0.25),
                student='cls_logits',
                weight=1.0,  # mdistiller
                name='dkd',
            ),
        ],
    )
]
