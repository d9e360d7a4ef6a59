"""CIFAR-100 (Krizhevsky 2009): 50,000 train and 10,000 test images of 32x32; there is no validation split.

Looked for in data/cifar100/cifar-100-python; another place goes into the variable CIFAR100_ROOT.
Numbers: RepDistiller and mdistiller, official code.
"""

data_root = '{{$CIFAR100_ROOT:data/cifar100}}'

model = dict(
    type='ImageClassifier',
    head=dict(type='LinearHead', num_classes=100),
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[255 * m for m in (0.5071, 0.4867, 0.4408)],
        std=[255 * s for s in (0.2675, 0.2565, 0.2761)],
        batch_augments=[
            dict(type='BatchRandomCrop', size=32, padding=4),
            dict(type='BatchRandomFlip', prob=0.5),
        ],
    ),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,  # whole batches are cut out of one array
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='whole_batch'),
    drop_last=False,
    dataset=dict(type='CIFAR100', data_root=data_root, split='train'),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type='CIFAR100', data_root=data_root, split='test'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ClsAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
