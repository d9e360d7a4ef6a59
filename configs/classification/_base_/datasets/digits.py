"""The 1,797 handwritten digits that scikit-learn carries, enlarged from 8x8 to 16x16.

Train 100 of 897 images, so that there is something to gain; val 300, to choose on; test 600, reported.
All numbers are our own.
"""

model = dict(
    type='ImageClassifier',
    head=dict(type='LinearHead', num_classes=10),
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[127.5],
        std=[127.5],
        # No flips: a mirrored digit is another shape.
        batch_augments=[dict(type='BatchRandomCrop', size=16, padding=2)],
    ),
)

train_dataloader = dict(
    batch_size=20,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type='SklearnDigits', split='train', size=16, num_samples=100),
)
val_dataloader = dict(
    batch_size=300,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type='SklearnDigits', split='val', size=16),
)
test_dataloader = dict(val_dataloader, dataset=dict(val_dataloader['dataset'], split='test'))
val_evaluator = dict(type='ClsAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
