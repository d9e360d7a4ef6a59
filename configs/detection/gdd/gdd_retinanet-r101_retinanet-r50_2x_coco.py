"""RetinaNet R50 <- RetinaNet R101: the lightest COCO pair, every weight here is recommended."""

_base_ = './gdd_retinanet-x101-64x4d_retinanet-r50_2x_coco.py'

# The term and what the student inherits are those of the base.
custom_hooks = [
    dict(
        _base_.custom_hooks[0],
        teacher=dict(
            config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
            # box AP 38.9 (mmdet model zoo)
            checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
        ),
    )
]
