"""Food-101: 68,175 and 7,575 images of the official training set to train and validate, 25,250 to test."""

_base_ = './funmatch.py'

source = dict(name='Food101', data_root='data/food101')
model = dict(head=dict(num_classes=101))
train_dataloader = dict(dataset=dict(split='train[:90%]', **source))
val_dataloader = dict(dataset=dict(split='train[90%:]', **source))
test_dataloader = dict(dataset=dict(split='test', **source))

teacher = dict(
    config='mmkd_plugin::classification/funmatch/bit_r152x2_food101.py',
    checkpoint='work_dirs/bit_r152x2_food101/iter_10000.pth',
)
