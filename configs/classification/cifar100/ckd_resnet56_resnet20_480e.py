"""CKD with its published schedule: twice as long as the other methods', cosine to 0 (official code)."""

_base_ = './ckd_resnet56_resnet20.py'

train_cfg = dict(max_epochs=480)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=480, end=480, eta_min=0.0)]
