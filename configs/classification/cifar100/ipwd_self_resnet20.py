"""Self-distillation with IPWD's weights in the last half of the run, on top of PS-KD."""

_base_ = './resnet20.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher='previous_epoch',
        terms=[
            dict(
                # start_epoch: recommended; early heads give poor estimates. Before it all weights are 1.
                loss=dict(type='IPWDLoss', temperature=1.0, start_epoch=120),
                student='cls_logits',
                weight=0.8,  # PS-KD, official code; reached at the end of the run
                begin=1,  # the first epoch has no previous one
                warmup=239,  # from the second epoch to the last; official: (e + 1) / 240
                by_epoch=True,
                name='ipwd',
            )
        ],
        task_weight='complement',  # (1 - a) CE + a IPWD
    )
]
