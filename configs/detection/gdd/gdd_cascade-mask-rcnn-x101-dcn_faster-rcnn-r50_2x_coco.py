"""Faster R-CNN R50 <- Cascade Mask R-CNN X101-32x4d-DCN, the two-stage pair of the GDD code."""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# GDD official config: SGD lr 0.02 for 8x2 images, momentum 0.9, weight decay 1e-4, 24 epochs with
# steps at 16 and 22, warm-up of 500 iterations: all equal to the base. The clipping is GDD's.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
            # box AP 47.3, mask AP 41.1 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth',
        ),
        terms=[
            dict(
                # temperature 4 and one noise map shared by all channels: GDD official code
                loss=dict(type='GDDLoss', temperature=4.0, noise='shared'),
                student='neck.fpn_convs.*.conv',  # P2-P5: GDD official config
                weight=4.0,  # alpha: GDD official config
                name='gdd',
            )
        ],
        init_student=None,  # the heads differ, nothing is inherited: GDD official config
    )
]
