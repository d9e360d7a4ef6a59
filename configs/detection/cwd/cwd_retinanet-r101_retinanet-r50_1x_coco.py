"""CWD on the FPN, RetinaNet R50 <- RetinaNet R101: the published baseline of mmrazor."""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',  # mmrazor config
            # box AP 38.9 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
        ),
        terms=[
            dict(
                loss=dict(type='CWDLoss', temperature=1.0),  # tau: mmrazor config
                student='neck',  # all five outputs P3-P7: mmrazor config
                weight=10.0,  # mmrazor config
                name='cwd',
            )
        ],
    )
]
