_base_ = './mobilenet_v1_imagenet.py'

teacher = dict(
    config='mmkd_plugin::classification/imagenet/resnet50_imagenet.py',
    checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth',  # top-1 76.13 (torchvision)
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
