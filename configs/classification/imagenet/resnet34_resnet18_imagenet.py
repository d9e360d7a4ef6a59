_base_ = './resnet18_imagenet.py'

teacher = dict(
    config='mmkd_plugin::classification/imagenet/resnet34_imagenet.py',
    checkpoint='https://download.pytorch.org/models/resnet34-b627a593.pth',  # top-1 73.31 (torchvision)
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
