"""The pair RetinaNet R50 <- RetinaNet R101; a method's config adds its hook."""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

teacher = dict(
    config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
    # box AP 38.9 (mmdet model zoo)
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
)
