"""KD on the class logits and on the DFL bins, GFL R50 <- GFL R101."""

_base_ = './kd_gfl-r101_gfl-r50_1x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            *_base_.custom_hooks[0].terms,  # KD on the class logits
            dict(
                # LD (its configs and code in mmdet): the sum over positives and four sides,
                # weighted by the student's score, divided by 4; mean over 17 bins, here a sum
                loss=dict(type='KDLoss', temperature=10.0),
                student='dfl_logits',
                select=dict(by='positive', weights='student_score', reduction='sum'),
                weight=0.25 / 4 / 17,
                name='kd_bins',
            ),
        ],
    )
]
