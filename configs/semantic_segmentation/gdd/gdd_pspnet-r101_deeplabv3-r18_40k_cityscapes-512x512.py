"""DeepLabV3 R18 <- PSPNet R101, a semantic segmentation pair of the GDD code.

Published: 77.69 mIoU, student alone 73.20, MGD 76.31 (abstract of GDD; MGD: its README).
"""

_base_ = ['../_base_/deeplabv3_r18-d8.py', '../_base_/pspnet-r101_cityscapes.py']

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # temperature 4 and one noise map shared by all channels: GDD official code
                loss=dict(type='GDDLoss', temperature=4.0, noise='shared'),
                student=dict(path='backbone', levels=[-1]),  # 512 -> 2048: GDD official config
                weight=175.0,  # alpha: GDD official config
                name='gdd',
            ),
        ],
    )
]
