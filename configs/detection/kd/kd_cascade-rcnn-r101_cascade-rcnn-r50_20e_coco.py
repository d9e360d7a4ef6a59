"""KD on the class logits of all three stages, Cascade R-CNN R50 <- Cascade R-CNN R101."""

_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_20e_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

teacher = dict(
    config='mmdet::cascade_rcnn/cascade-rcnn_r101_fpn_20e_coco.py',
    # box AP 42.5 (mmdet model zoo)
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/cascade_rcnn_r101_fpn_20e_coco/cascade_rcnn_r101_fpn_20e_coco_bbox_mAP-0.425_20200504_231812-5057dcc5.pth',
)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=teacher,
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
