"""RepPoints R50 <- RepPoints X101-32x4d-DCN, the one-stage pair of the GDD code."""

_base_ = 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# GDD official config: lr 0.01 for 8x2 images, momentum 0.9, weight decay 1e-4, 24 epochs with steps
# at 16 and 22, warm-up of 500 iterations: all equal to the base. The clipping is GDD's.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
            # box AP 44.2 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
        ),
        terms=[
            dict(
                # temperature 4 and one noise map shared by all channels: GDD official code
                loss=dict(type='GDDLoss', temperature=4.0, noise='shared'),
                # P3-P7 before the neck's GroupNorm, on both sides: GDD official config
                student='neck.fpn_convs.*.conv',
                weight=65.0,  # alpha: GDD official config
                name='gdd',
            )
        ],
        init_student='neck+head',  # inheriting strategy: GDD official config
    )
]
