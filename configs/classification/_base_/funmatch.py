"""FunMatch on small sets: BiT-M R152x2, fine-tuned on the set, teaches an R50x1 that starts from scratch.

Numbers without a word are the official code's. What belongs to a set is in funmatch_<set>.py, what belongs to a
run (steps, learning rate, decay, temperature) in ../funmatch.
"""

_base_ = './runtime.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='TimmBackbone', name='resnetv2_50x1_bit'),
    head=dict(type='LinearHead', init='zero'),
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[127.5], std=[127.5], mixup=1.0, non_blocking=True
    ),
)

# One heavy crop and flip, the same tensor for both networks.
view = dict(type='TeacherStudentViews', size=128, mode='same', scale=(0.05, 1.0), flip=0.5)
train_dataloader = dict(
    batch_size=512,
    num_workers=16,
    pin_memory=True,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),  # batches cross the borders of epochs
    collate_fn=dict(type='stack_batch'),
    worker_init_fn=dict(type='epoch_worker_seed'),
    dataset=dict(type='TorchvisionDataset', transforms=[view], download=True),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='stack_batch'),
    dataset=dict(
        type='TorchvisionDataset',
        transforms=[dict(type='Resize', size=160), dict(type='CenterCrop', size=128)],
        download=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ClsAccuracy', topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    # A run sets lr and weight_decay = wd / lr: the official decay is not multiplied by the rate, PyTorch's is.
    optimizer=dict(type='AdamW'),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),  # decay on kernels only
)
# A run adds the end. end=1501: the full rate at step 1500; start_factor=0 is refused.
warmup = dict(type='LinearLR', by_epoch=False, begin=0, end=1501, start_factor=1e-9)
decay = dict(type='CosineAnnealingLR', by_epoch=False, begin=1500, eta_min=0.0)

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000))
log_processor = dict(by_epoch=False)
