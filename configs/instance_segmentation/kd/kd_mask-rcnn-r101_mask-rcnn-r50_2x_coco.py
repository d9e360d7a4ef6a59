"""KD on the class logits of RoIs and on masks, Mask R-CNN R50 <- Mask R-CNN R101."""

_base_ = '../../_base_/pairs/mask-rcnn-r101_mask-rcnn-r50_2x_coco.py'

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
            dict(
                # Bernoulli KL on every pixel of the mask of each positive RoI's class: recommended
                loss=dict(type='KDLoss', temperature=1.0),
                student='mask_logits',
                weight=1.0,  # as the mask loss of the student: recommended
                name='kd_masks',
            ),
        ],
    )
]
