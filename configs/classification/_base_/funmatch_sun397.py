"""SUN397: 108,754 images without an official split here; 70, 10 and 20 % to train, validate and test."""

_base_ = './funmatch.py'

source = dict(name='SUN397', data_root='data/sun397')
model = dict(head=dict(num_classes=397))
train_dataloader = dict(dataset=dict(split='[:70%]', **source))
val_dataloader = dict(dataset=dict(split='[70%:80%]', **source))
test_dataloader = dict(dataset=dict(split='[80%:]', **source))

teacher = dict(
    config='mmkd_plugin::classification/funmatch/bit_r152x2_sun397.py',
    checkpoint='work_dirs/bit_r152x2_sun397/iter_10000.pth',
)
