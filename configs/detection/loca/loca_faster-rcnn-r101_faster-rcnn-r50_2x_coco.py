"""LoCa on the class logits, Faster R-CNN R50 <- Faster R-CNN R101."""

_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    '../../_base_/teachers/faster-rcnn_r101_ms-3x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # exact on the softmax rows of foreground RoIs: recommended
                # alpha 0.9 of a robust range 0.9 to 1.0, temperature as KD: recommended
                loss=dict(type='LoCaLoss', temperature=1.0, alpha=0.9),
                student='cls_logits',
                weight=1.0,  # as KD: recommended
                name='loca',
            ),
        ],
    )
]
