"""Faster R-CNN R101, 3x, multi-scale: box AP 41.8 (mmdet model zoo)."""

teacher = dict(
    config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py',
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_mstrain_3x_coco/faster_rcnn_r101_fpn_mstrain_3x_coco_20210524_110822-4d4d2ca8.pth',
)
