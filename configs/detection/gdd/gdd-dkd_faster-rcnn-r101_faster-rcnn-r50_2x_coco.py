"""GDD on the FPN and DKD on the RoIs, Faster R-CNN R50 <- Faster R-CNN R101."""

_base_ = '../../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_2x_coco.py'

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
                student='neck.fpn_convs.*.conv',  # P2-P5: as GDD's Faster R-CNN config
                weight=4.0,  # recommended: taken over from GDD's two-stage pair (Faster R-CNN)
                name='gdd',
            ),
            dict(
                # all numbers: mdistiller
                loss=dict(type='DKDLoss', temperature=1.0, alpha=1.0, beta=0.25),
                student='cls_logits',
                weight=1.0,
                name='dkd',
            ),
        ],
        init_student='neck+head',  # recommended: both heads have the same shape
    )
]
