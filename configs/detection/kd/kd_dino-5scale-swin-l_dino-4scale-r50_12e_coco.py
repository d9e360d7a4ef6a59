"""KD on the class logits of matched queries.

DINO R50 (four scales) <- DINO Swin-L (five scales).
"""

_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

teacher = dict(
    config='mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py',
    # box AP 57.2 (mmdet model zoo)
    checkpoint='https://download.openmmlab.com/mmdetection/v3.0/dino/dino-5scale_swin-l_8xb2-12e_coco/dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f.pth',
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
