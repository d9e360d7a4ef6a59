"""LoCa on the class logits, RetinaNet R50 <- RetinaNet R101."""

_base_ = '../../_base_/pairs/retinanet-r101_retinanet-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # margin form for sigmoid heads, on positive positions: recommended
                # alpha 0.9 of a robust range 0.9 to 1.0, temperature as KD: recommended
                loss=dict(type='LoCaLoss', temperature=1.0, alpha=0.9),
                student='cls_logits',
                weight=1.0,  # as KD: recommended
                name='loca',
            ),
        ],
    )
]
