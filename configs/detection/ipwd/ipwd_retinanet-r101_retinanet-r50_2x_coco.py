"""IPWD on the class logits, RetinaNet R50 <- RetinaNet R101.

The paper has no detectors; all of it is recommended.
"""

_base_ = '../../_base_/pairs/retinanet-r101_retinanet-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                loss=dict(
                    type='IPWDLoss',
                    temperature=1.0,  # as KD, which it replaces
                    ratio='kd_over_cls',  # unverified, 'cls_over_kd' is the other reading
                    normalize='batch_mean',  # over the positives, or a few hard ones dominate
                    clip_max=5.0,  # in units of the mean weight
                    start_epoch=8,  # plain KD for a third of the schedule
                ),
                student='cls_logits',  # positives, the default: background has no informative label
                weight=1.0,  # as KD
                name='ipwd',
            ),
        ],
    )
]
