_base_ = './vgg8.py'

teacher = dict(
    config='mmkd_plugin::classification/cifar100/vgg13.py',
    checkpoint='work_dirs/vgg13/epoch_240.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
