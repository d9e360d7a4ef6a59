"""LoCa on the class logits, GFL R50 <- GFL R101."""

_base_ = '../../_base_/pairs/gfl-r101_gfl-r50_1x_coco.py'

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
