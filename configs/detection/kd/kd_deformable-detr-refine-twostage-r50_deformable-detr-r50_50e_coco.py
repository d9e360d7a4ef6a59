"""KD on the class logits of matched queries.

Deformable DETR R50 <- Deformable DETR R50 with refined boxes and two stages.
"""

_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

teacher = dict(
    config='mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    # box AP 47.0 (mmdet zoo)
    checkpoint='https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco/deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff.pth',
)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=teacher,
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
