"""Oxford Flowers 102: 1,020 train, 1,020 validation and 6,149 test images."""

_base_ = './funmatch.py'

source = dict(name='Flowers102', data_root='data/flowers102')
model = dict(head=dict(num_classes=102))
train_dataloader = dict(dataset=dict(split='train', **source))
val_dataloader = dict(dataset=dict(split='val', **source))
test_dataloader = dict(dataset=dict(split='test', **source))

teacher = dict(
    config='mmkd_plugin::classification/funmatch/bit_r152x2_flowers102.py',
    checkpoint='work_dirs/bit_r152x2_flowers102/iter_500.pth',
)
