"""Self-distillation (PS-KD): the teacher is the student of the previous epoch, its share grows with time."""

_base_ = './resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher='previous_epoch',
        terms=[
            dict(
                loss=dict(type='KDLoss', temperature=1.0),  # PS-KD: plain probabilities
                student='cls_logits',
                weight=0.8,  # recommended; reached at the end of the run
                begin=1,  # the first epoch has no previous one
                warmup=239,  # from the second epoch to the last
                by_epoch=True,
                name='ps_kd',
            )
        ],
        task_weight='complement',  # (1 - a) CE + a KD
    )
]
