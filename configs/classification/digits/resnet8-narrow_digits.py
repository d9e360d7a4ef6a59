_base_ = '../_base_/digits.py'

model = dict(backbone=dict(type='CIFARResNet', depth=8, widths=(4, 4, 8, 16)))
