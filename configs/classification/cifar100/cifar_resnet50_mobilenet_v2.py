_base_ = './mobilenet_v2.py'

teacher = dict(
    config='mmkd_plugin::classification/cifar100/cifar_resnet50.py',
    checkpoint='work_dirs/cifar_resnet50/epoch_240.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
