"""The pair Faster R-CNN R50 <- Faster R-CNN R101; a method's config adds its hook."""

_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    '../teachers/faster-rcnn_r101_ms-3x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)
