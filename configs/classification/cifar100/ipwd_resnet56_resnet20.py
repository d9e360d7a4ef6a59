"""IPWD: KD weighted by inverse propensity. The paper publishes no weights at hand."""

_base_ = './resnet56_resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # ratio: unverified, 'cls_over_kd' is the other reading; temperature: as KD, which it replaces
                loss=dict(type='IPWDLoss', ratio='kd_over_cls', temperature=4.0),
                student='cls_logits',
                weight=0.9,  # as KD
                name='ipwd',
            )
        ],
        task_weight=0.1,  # as KD
    )
]
