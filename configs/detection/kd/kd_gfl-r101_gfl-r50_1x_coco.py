"""KD on the class logits, GFL R50 <- GFL R101."""

_base_ = '../../_base_/pairs/gfl-r101_gfl-r50_1x_coco.py'

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
