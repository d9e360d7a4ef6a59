"""DeepLabV3 with ResNet-18, stride 8, as in MMSegmentation's configs, for crops of 512x512."""

_base_ = './r18-d8_512x512.py'

model = dict(decode_head=dict(type='ASPPHead', dilations=(1, 12, 24, 36)))
