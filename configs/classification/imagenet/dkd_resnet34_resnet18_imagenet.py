"""Decoupled KD on ImageNet with every number written out: other than on CIFAR-100, T=1 and one epoch of ramp."""

_base_ = './resnet34_resnet18_imagenet.py'

custom_hooks = [
    dict(
        type='DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # temperature, alpha and this pair's beta (2.0 for ResNet-50 -> MobileNetV1): mdistiller
                loss=dict(type='DKDLoss', temperature=1.0, alpha=1.0, beta=0.5),
                student='cls_logits',
                weight=1.0,  # mdistiller
                warmup=1,  # mdistiller
                by_epoch=True,
                name='dkd',
            )
        ],
        task_weight=1.0,  # mdistiller
    )
]
