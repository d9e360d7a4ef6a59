"""Mask R-CNN R50 <- Cascade Mask R-CNN X101-64x4d; GDD publishes no config for this pair."""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# max_norm 35: GDD official configs of all detection pairs. Learning rate and schedule: the base.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::cascade_rcnn/cascade-mask-rcnn_x101-64x4d_fpn_20e_coco.py',
            # box AP 45.6, mask AP 39.5 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco_20200512_161033-bdb5126a.pth',
        ),
        terms=[
            dict(
                # temperature 4: GDD official code; noise per channel: recommended
                loss=dict(type='GDDLoss', temperature=4.0, noise='channel'),
                student='neck.fpn_convs.*.conv',  # P2-P5: as GDD's Faster R-CNN config
                weight=4.0,  # recommended: taken over from GDD's two-stage pair (Faster R-CNN)
                name='gdd',
            )
        ],
        init_student=None,  # recommended, as GDD's two-stage pair: the RoI heads differ
    )
]
