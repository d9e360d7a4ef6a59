"""CKD on ImageNet with its published schedule: 200 epochs, cosine to 0, twice the other methods' (official code)."""

_base_ = './resnet34_resnet18_imagenet.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        # weight and temperature: official code
        terms=[
            dict(
                loss=dict(type='CKDLoss', temperature=1.0),
                student='cls_logits',
                weight=10.0,
                name='ckd',
            )
        ],
        task_weight=1.0,
    )
]
train_cfg = dict(max_epochs=200)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=200, end=200, eta_min=0.0)]
