"""Self-distillation (PS-KD): the teacher is the student of the previous epoch, its share grows with time.

The official code stores the predictions of the epoch before instead, made in training mode on that
epoch's crops, and trains for 300 epochs of its own schedule. Here: the common 240 epochs.
"""

_base_ = './resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher='previous_epoch',
        terms=[
            dict(
                loss=dict(type='KDLoss', temperature=1.0),  # PS-KD: plain probabilities
                student='cls_logits',
                weight=0.8,  # PS-KD, official code; reached at the end of the run
                begin=1,  # the first epoch has no previous one
                warmup=239,  # from the second epoch to the last; official: (e + 1) / 240
                by_epoch=True,
                name='ps_kd',
            )
        ],
        task_weight='complement',  # (1 - a) CE + a KD
    )
]
