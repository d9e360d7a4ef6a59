"""SOLO R50 <- SOLO R101 (3x, multi-scale), the instance segmentation pair of the GDD code."""

_base_ = 'mmdet::solo/solo_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# GDD official config: lr 0.01, 12 epochs with steps at 8 and 11: equal to the base. The clipping is
# GDD's.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmkd_plugin::_base_/teachers/solo_r101_fpn_3x_coco.py',
            # No zoo has this file (GDD's config names a local one too). Train it once:
            # python tools/train.py configs/_base_/teachers/solo_r101_fpn_3x_coco.py
            checkpoint='work_dirs/solo_r101_fpn_3x_coco/epoch_36.pth',
        ),
        terms=[
            dict(
                # temperature 4 and one noise map shared by all channels: GDD official code
                loss=dict(type='GDDLoss', temperature=4.0, noise='shared'),
                student='neck.fpn_convs.*.conv',  # P2-P5: GDD official config
                weight=200.0,  # alpha: GDD official config
                name='gdd',
            )
        ],
        init_student='neck+head',  # inheriting strategy: GDD official config
    )
]
