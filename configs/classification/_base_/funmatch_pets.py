"""Oxford-IIIT Pets: 3,312 and 368 images of the official training set to train and validate, 3,669 to test."""

_base_ = './funmatch.py'

source = dict(name='OxfordIIITPet', data_root='data/pets')
model = dict(head=dict(num_classes=37))
train_dataloader = dict(dataset=dict(split='trainval[:90%]', **source))
val_dataloader = dict(dataset=dict(split='trainval[90%:]', **source))
test_dataloader = dict(dataset=dict(split='test', **source))

teacher = dict(
    config='mmkd_plugin::classification/funmatch/bit_r152x2_pets.py',
    checkpoint='work_dirs/bit_r152x2_pets/iter_500.pth',
)
