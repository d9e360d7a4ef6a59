"""GDD on the FPN, KD on class logits and DFL bins, GFL R50 <- GFL R101."""

_base_ = '../kd/kd-bins_gfl-r101_gfl-r50_1x_coco.py'

# max_norm 35: GDD official configs of all detection pairs. Learning rate and schedule: the base.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # temperature 4: GDD official code; noise per channel: recommended
                loss=dict(type='GDDLoss', temperature=4.0, noise='channel'),
                student='neck.fpn_convs.*.conv',  # P3-P7: as GDD's RepPoints config
                weight=65.0,  # recommended: taken over from GDD's one-stage pair (RepPoints)
                name='gdd',
            ),
            *_base_.custom_hooks[0].terms,  # KD on class logits and on bins
        ],
        init_student='neck+head',  # recommended: both heads have the same shape
    )
]
