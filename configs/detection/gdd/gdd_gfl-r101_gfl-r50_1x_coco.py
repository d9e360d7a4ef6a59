"""GFL R50 <- GFL R101; GDD publishes no config for this pair."""

_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# max_norm 35: GDD official configs of all detection pairs. Learning rate and schedule: the base.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
            # box AP 44.7 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
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
