"""MGD on the FPN, RetinaNet R50 <- RetinaNet X101-64x4d: the pair of the official MGD code.

Published result of this pair: 41.0 box AP, student alone 37.4 (README of MGD).
"""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))  # MGD official config

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',  # MGD official config
            # the multi-scale 3x weights, as MGD's config; box AP 41.6 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_mstrain_3x_coco/retinanet_x101_64x4d_fpn_mstrain_3x_coco_20210719_051838-022c2187.pth',
        ),
        terms=[
            dict(
                # lambda 0.65, squared error summed and divided by the batch: MGD official config
                loss=dict(type='MGDLoss', mask_ratio=0.65, normalize='batch'),
                student='neck.fpn_convs.*.conv',  # P3-P7: MGD official config
                weight=2e-5,  # alpha: MGD official config
                name='mgd',
            )
        ],
        init_student='neck+head',  # MGD official config
    )
]
