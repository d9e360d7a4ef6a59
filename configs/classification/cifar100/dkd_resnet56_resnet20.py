"""Decoupled KD with every number written out."""

_base_ = './resnet56_resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # temperature, alpha and this pair's beta: mdistiller
                loss=dict(type='DKDLoss', temperature=4.0, alpha=1.0, beta=2.0),
                student='cls_logits',
                weight=1.0,  # mdistiller
                warmup=20,  # mdistiller: a linear ramp, 1/20 in the first epoch
                by_epoch=True,
                name='dkd',
            )
        ],
        task_weight=1.0,  # mdistiller
    )
]
