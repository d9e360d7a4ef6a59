"""LoCa on the class logits, Faster R-CNN R50 <- Faster R-CNN R101."""

_base_ = '../../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # exact on the softmax rows of foreground RoIs: recommended
                # alpha 0.9 of a robust range 0.9 to 1.0, temperature as KD: recommended
                loss=dict(type='LoCaLoss', temperature=1.0, alpha=0.9),
                student='cls_logits',
                weight=1.0,  # as KD: recommended
                name='loca',
            ),
        ],
    )
]
