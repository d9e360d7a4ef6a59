"""GDD on the levels of equal stride and KD by boxes, GFL R50 <- Faster R-CNN R101.

All of it is recommended.
"""

_base_ = [
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    '../../_base_/teachers/faster-rcnn_r101_ms-3x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# max_norm 35: GDD official configs of all detection pairs. Learning rate and schedule: the base.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        # GDD on P3-P5, which both have: the teacher has P2-P6, of which P6 is a max-pool of P5. KD
        # of the teacher's detections, given to the positions that lie in their boxes.
        recipe='gdd+kd',
        weights='published',  # 65: taken over from GDD's one-stage pair (RepPoints); KD 1
    )
]
