"""KD on the class logits of all three stages, Cascade R-CNN R50 <- Cascade R-CNN R101."""

_base_ = [
    'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_20e_coco.py',
    '../../_base_/teachers/cascade-rcnn_r101_20e_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # the mean of the stages, each on its own RoIs; temperature as DKD (mdistiller)
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,  # recommended
                name='kd',
            ),
        ],
    )
]
