"""RetinaNet R50 <- RetinaNet R101: the lightest COCO pair, every weight here is recommended."""

_base_ = './gdd_retinanet-x101-64x4d_retinanet-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
            # box AP 38.9 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
        ),
        terms=[
            dict(
                # temperature 4: GDD official code; noise per channel: recommended
                loss=dict(type='GDDLoss', temperature=4.0, noise='channel'),
                student='neck.fpn_convs.*.conv',  # P3-P7: as GDD's RepPoints config
                weight=65.0,  # recommended: taken over from GDD's one-stage pair (RepPoints)
                name='gdd',
            )
        ],
        init_student='neck+head',  # recommended: both heads have the same shape
    )
]
