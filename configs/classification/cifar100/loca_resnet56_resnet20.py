"""LoCa: KD with the teacher's wrong answers calibrated. The paper publishes no weights at hand."""

_base_ = './resnet56_resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # alpha: recommended (0.9 to 1.0 is said to be robust); temperature: as KD, which it replaces
                loss=dict(type='LoCaLoss', alpha=0.9, temperature=4.0),
                student='cls_logits',
                weight=0.9,  # as KD
                name='loca',
            )
        ],
        task_weight=0.1,  # as KD
    )
]
