"""KD on the class logits, Faster R-CNN R50 <- Faster R-CNN R101."""

_base_ = '../../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # softmax KL on every sampled RoI; temperature as DKD on RoIs (mdistiller)
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,  # recommended
                name='kd',
            ),
        ],
    )
]
