"""KD on the class logits, RetinaNet R50 <- RetinaNet R101."""

_base_ = '../../_base_/pairs/retinanet-r101_retinanet-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # Bernoulli KL, positions weighted by the teacher's score, the default;
                # temperature: recommended
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,  # recommended
                name='kd',
            ),
        ],
    )
]
