"""ImageNet-1K, looked for in data/imagenet/{train,val}/<class>; another place goes into IMAGENET_ROOT.

Crops, flip, mean and deviation: mdistiller, official code (torchvision's usual ones).
"""

data_root = '{{$IMAGENET_ROOT:data/imagenet}}'

model = dict(
    type='ImageClassifier',
    head=dict(type='LinearHead', num_classes=1000),
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        non_blocking=True,
    ),
)

train_dataloader = dict(
    batch_size=512,  # on one GPU; on 8 it is 64, or --auto-scale-lr
    num_workers=16,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='stack_batch'),
    worker_init_fn=dict(type='epoch_worker_seed'),
    dataset=dict(
        type='TorchvisionDataset',
        name='ImageFolder',
        data_root=data_root,
        split='train',
        transforms=[
            dict(type='RandomResizedCrop', size=224),
            dict(type='RandomHorizontalFlip', p=0.5),
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=16,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='stack_batch'),
    dataset=dict(
        type='TorchvisionDataset',
        name='ImageFolder',
        data_root=data_root,
        split='val',
        transforms=[dict(type='Resize', size=256), dict(type='CenterCrop', size=224)],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ClsAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
