"""KD on the class logits of matched queries.

DINO R50 (four scales) <- DINO Swin-L (five scales).
"""

_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../../_base_/teachers/dino-5scale_swin-l_12e_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # the mean of the six decoder layers, without denoising queries: all recommended
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=2.0,  # the weight of the student's own class loss
                name='kd',
            ),
        ],
    )
]
