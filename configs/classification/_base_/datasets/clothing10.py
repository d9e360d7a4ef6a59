"""Clothing, 10 classes (CC0, github.com/alexeygrigorev/clothing-dataset-small), trained and tested at 64x64.

Looked for in data/clothing10/{train,validation,test}/<class>; another place goes into CLOTHING10_ROOT.
Train 3,068 images; validation 341, to choose on; test 372, reported. All numbers are our own.
"""

data_root = '{{$CLOTHING10_ROOT:data/clothing10}}'

model = dict(
    type='ImageClassifier',
    head=dict(type='LinearHead', num_classes=10),
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],  # ImageNet's
        std=[58.395, 57.12, 57.375],
        batch_augments=[
            dict(type='BatchRandomResizedCrop', size=64, scale=(0.35, 1.0)),
            dict(type='BatchRandomFlip', prob=0.5),
        ],
        eval_transforms=[dict(type='BatchResize', size=64)],
    ),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type='CachedImageFolder', data_root=data_root, split='train', size=80),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type='CachedImageFolder', data_root=data_root, split='validation', size=80),
)
test_dataloader = dict(val_dataloader, dataset=dict(val_dataloader['dataset'], split='test'))
val_evaluator = dict(type='ClsAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
