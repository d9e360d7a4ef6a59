"""PKD on the FPN, RetinaNet R50 <- RetinaNet X101-64x4d: the published baseline of mmrazor.

Published result of this pair: 40.8 box AP, student alone 37.4, teacher 41.0 (README of mmrazor).
"""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',  # mmrazor config
            # box AP 41.0 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
        ),
        terms=[
            dict(
                loss=dict(type='PKDLoss'),
                student=dict(path='neck', levels=[0, 1, 2, 3]),  # P3-P6: mmrazor config
                weight=10.0,  # mmrazor config
                name='pkd',
            )
        ],
    )
]
