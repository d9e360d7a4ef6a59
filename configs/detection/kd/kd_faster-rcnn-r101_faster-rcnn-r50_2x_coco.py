"""KD on the class logits, Faster R-CNN R50 <- Faster R-CNN R101."""

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
                # softmax KL on every sampled RoI; temperature as DKD on RoIs (mdistiller)
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,  # recommended
                name='kd',
            ),
        ],
    )
]
