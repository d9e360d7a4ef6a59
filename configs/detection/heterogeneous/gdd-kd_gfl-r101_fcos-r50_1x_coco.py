"""GDD on the FPN and KD on the class logits, FCOS R50 <- GFL R101.

All of it is recommended.
"""

_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    '../../_base_/teachers/gfl_r101_ms-2x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# The student reads images as Caffe does (BGR, no scaling); the teacher gets them converted.
custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # temperature 4: GDD official code; noise per channel: recommended
                loss=dict(type='GDDLoss', temperature=4.0, noise='channel'),
                student='neck.fpn_convs.*.conv',  # P3-P7 on both sides
                weight=65.0,  # taken over from GDD's one-stage pair (RepPoints)
                name='gdd',
            ),
            dict(
                # both heads have one prediction at each position of the same strides
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,
                name='kd',
            ),
        ],
    )
]
