_base_ = './resnet32.py'

teacher = dict(
    config='mmkd_plugin::classification/cifar100/resnet110.py',
    checkpoint='work_dirs/resnet110/epoch_240.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
