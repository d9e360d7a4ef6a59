"""FunMatch on ImageNet: 224 pixels, batches of 4,096 (over all GPUs). Numbers: official code."""

_base_ = './funmatch.py'

source = dict(name='ImageFolder', data_root='{{$IMAGENET_ROOT:data/imagenet}}')
view = dict(type='TeacherStudentViews', size=224, mode='same', scale=(0.05, 1.0), flip=0.5)
model = dict(head=dict(num_classes=1000))
train_dataloader = dict(
    batch_size=512,  # on each of 8 GPUs
    dataset=dict(split='train[:98%]', transforms=[view], **source),
)
val_dataloader = dict(
    dataset=dict(
        split='val',
        transforms=[dict(type='Resize', size=256), dict(type='CenterCrop', size=224)],
        **source,
    )
)
test_dataloader = val_dataloader
warmup = dict(end=5001)
decay = dict(begin=5000)

teacher = dict(
    config='mmkd_plugin::classification/funmatch/bit_r152x2_imagenet.py',
    # top-1 83.0 (official README), converted by timm
    checkpoint='https://huggingface.co/timm/resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k/resolve/main/pytorch_model.bin',
)
