"""Mask R-CNN R50, 3x, multi-scale: box AP 40.9, mask AP 37.1 (mmdet model zoo)."""

teacher = dict(
    config='mmdet::mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco.py',
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_mstrain-poly_3x_coco/mask_rcnn_r50_fpn_mstrain-poly_3x_coco_20210524_201154-21b550bb.pth',
)
