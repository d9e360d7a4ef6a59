"""RetinaNet R50 <- RetinaNet X101-64x4d; GDD publishes no config for this pair."""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# max_norm 35: MGD official config of this pair. Learning rate and schedule: the base.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
            # box AP 41.0 (mmdet model zoo); the same file as in mmrazor's configs of this pair
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
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
        init_student='neck+head',  # recommended; MGD's official config of this pair inherits too
    )
]
