"""CIFAR-100's common schedule: RepDistiller and mdistiller, official code.

The learning rate is 0.01 for MobileNetV2 and both ShuffleNets; the batch size 64 is in datasets/cifar100.py.
"""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=240, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    # The decay is on all parameters, norms and biases among them.
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    # Lower from the 151st, 181st and 211th epoch on.
    dict(type='MultiStepLR', by_epoch=True, milestones=[150, 180, 210], gamma=0.1)
]
