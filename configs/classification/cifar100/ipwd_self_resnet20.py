"""Self-distillation with IPWD's weights in the last half of the run, on top of PS-KD."""

_base_ = './ps_kd_resnet20.py'

custom_hooks = [
    dict(
        _base_.custom_hooks[0],
        terms=[
            dict(
                _base_.custom_hooks[0].terms[0],  # PS-KD's, with its growing weight
                # start_epoch: recommended; early heads give poor estimates. Before it all weights are 1.
                loss=dict(type='IPWDLoss', temperature=1.0, start_epoch=120),
                name='ipwd',
            )
        ],
    )
]
