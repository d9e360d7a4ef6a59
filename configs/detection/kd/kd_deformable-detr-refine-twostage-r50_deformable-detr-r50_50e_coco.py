"""KD on the class logits of matched queries.

Deformable DETR R50 <- Deformable DETR R50 with refined boxes and two stages.
"""

_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '../../_base_/teachers/deformable-detr-refine-twostage_r50_50e_coco.py',
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
