"""GDD on the FPN and KD on the class logits, RetinaNet R50 <- RetinaNet R101."""

_base_ = '../kd/kd_retinanet-r101_retinanet-r50_2x_coco.py'

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
            *_base_.custom_hooks[0].terms,  # KD on the class logits
        ],
        init_student='neck+head',  # recommended: both heads have the same shape
    )
]
