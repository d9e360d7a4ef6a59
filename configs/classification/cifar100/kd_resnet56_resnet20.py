"""KD with every number written out: what recipe='kd' makes of this pair."""

_base_ = './resnet56_resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                loss=dict(type='KDLoss', temperature=4.0),  # T: RepDistiller and mdistiller
                student='cls_logits',
                weight=0.9,  # RepDistiller and mdistiller
                name='kd',
            )
        ],
        task_weight=0.1,  # RepDistiller and mdistiller
    )
]
