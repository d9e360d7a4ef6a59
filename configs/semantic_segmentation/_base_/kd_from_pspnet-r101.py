"""KD on every pixel of Cityscapes, from PSPNet R101: all of it is recommended."""

_base_ = './pspnet-r101_cityscapes.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # softmax KL, the mean over all pixels that are not ignored
                loss=dict(type='KDLoss', temperature=1.0),
                student='seg_logits',
                weight=1.0,  # that of the student's own loss
                name='kd',
            ),
        ],
    )
]
