"""CKD (sample-wise contrastive KD) in the common 240-epoch schedule; its own is in ckd_resnet56_resnet20_480e.py."""

_base_ = './resnet56_resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                loss=dict(type='CKDLoss', temperature=1.0),  # this pair's: official code
                student='cls_logits',
                weight=10.0,  # this pair's: official code
                name='ckd',
            )
        ],
        task_weight=1.0,  # official code
    )
]
