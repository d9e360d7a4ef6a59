"""Function matching on CIFAR-100: mixup, one view for both networks, no labels. No such result is published.

Loss, mixup and the shape of the schedule are the official code's; the numbers marked so are this project's.
"""

_base_ = './resnet56_resnet20.py'

train_dataloader = dict(batch_size=512)  # recommended; the official small sets' batch
steps = 240 * 98  # recommended: as many epochs as the other methods, of 98 batches each
warmup = 1500  # official code, small sets
model = dict(data_preprocessor=dict(mixup=1.0))  # official code: Beta(1, 1), one factor per step
custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        # temperature: recommended (1 or 4)
        terms=[
            dict(
                loss=dict(type='KDLoss', temperature=4.0),
                student='cls_logits',
                weight=1.0,
                name='funmatch',
            )
        ],
        task_weight=0.0,  # official code: no label term of any kind
    ),
    # recommended: batch norm learns its statistics on mixed images and is tested on plain ones
    dict(type='RecalibrateBNHook', num_batches=20),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    # recommended (1e-3 to 3e-3); weight_decay = wd/lr of the official code
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),  # official code
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),  # official code: kernels only
)
param_scheduler = [
    # end=warmup + 1: the full rate at step `warmup`, as in the official code; start_factor=0 is refused
    dict(type='LinearLR', by_epoch=False, begin=0, end=warmup + 1, start_factor=1e-9),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warmup,
        end=steps,
        T_max=steps - warmup,
        eta_min=0.0,
    ),
]
