"""KD on the class logits of the cells and on the masks of the positive ones, SOLO R50 <- SOLO R101.

All of it is recommended.
"""

_base_ = 'mmdet::solo/solo_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmkd_plugin::_base_/teachers/solo_r101_fpn_3x_coco.py',
            # No zoo has this file. Train it once:
            # python tools/train.py configs/_base_/teachers/solo_r101_fpn_3x_coco.py
            checkpoint='work_dirs/solo_r101_fpn_3x_coco/epoch_36.pth',
        ),
        terms=[
            dict(
                # Bernoulli KL, cells weighted by the teacher's score, the default
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,
                name='kd',
            ),
            dict(
                # Bernoulli KL on every pixel of the masks of the cells that the student's own
                # targets made positive
                loss=dict(type='KDLoss', temperature=1.0),
                student='mask_logits',
                weight=1.0,
                name='kd_masks',
            ),
        ],
    )
]
